"""Caches whose blocks move and whose number of blocks changes, under the stages that use them."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    KV_ELEMENT_TYPES,
    DenseBlock,
    KvCache,
    PackedMatrix,
    SelfAttentionBlock,
    Stage,
    StageLayer,
    StageNorm,
    StageRope,
    StageSlice,
    StageSpec,
    encode_rows,
)

MIB = 1 << 20
HIDDEN, INTERMEDIATE, VOCABULARY = 32, 48, 40


def random_stage(num_kv_heads: int, head_dim: int, num_layers: int = 2, max_rows: int = 64, max_context: int = 512) -> Stage:
    numbers, width = np.random.default_rng(3), 2 * num_kv_heads * head_dim
    norm = StageNorm("rms", 1e-5)
    spec = StageSpec(hidden_size=HIDDEN, num_layers=num_layers, output_norm=norm)
    attention = SelfAttentionBlock(
        num_heads=2 * num_kv_heads, num_kv_heads=num_kv_heads, key_dim=head_dim, value_dim=head_dim, scale=head_dim**-0.5,
        rope=StageRope(1e4, head_dim, interleaved=True),
    )  # fmt: skip
    layer = StageLayer(
        attention_norm=norm, attention=attention, feed_forward_norm=norm, feed_forward=DenseBlock(intermediate_size=INTERMEDIATE)
    )

    def matrix(outputs: int, inputs: int) -> PackedMatrix:
        packed = PackedMatrix("F32", outputs, inputs)
        packed.pack_rows(0, (numbers.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32).tobytes())
        return packed

    stage = Stage(spec, max_rows=max_rows, max_context=max_context)
    stage.set_embedding(matrix(VOCABULARY, HIDDEN))
    ones = np.ones(HIDDEN, np.float32)
    for index in range(num_layers):
        weights = {"q": (width, HIDDEN), "k": (width // 2, HIDDEN), "v": (width // 2, HIDDEN), "attention_output": (HIDDEN, width)}
        weights |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
        norms = {"attention_norm": ones, "ffn_norm": ones}
        stage.add_layer(index, layer, {**{name: matrix(*shape) for name, shape in weights.items()}, **norms})
    stage.set_head(ones, matrix(VOCABULARY, HIDDEN))
    return stage


def logits_of(
    stage: Stage, kv: list[KvCache], ids: NDArray[np.int32], first_position: int, blocks: NDArray[np.int32]
) -> NDArray[np.float32]:
    return stage.run(kv, ids, [StageSlice(len(ids), first_position, blocks)], np.arange(len(ids)))


GEOMETRIES = st.tuples(
    st.sampled_from((16, 32, 48)), st.integers(1, 3), st.sampled_from((2, 10, 16, 34)), st.sampled_from(KV_ELEMENT_TYPES)
)


def cache_of(num_blocks: int, geometry: tuple[int, int, int, str]) -> KvCache:
    block_tokens, num_kv_heads, head_dim, element_type = geometry
    return KvCache(num_blocks, block_tokens, num_kv_heads, head_dim, head_dim, element_type)


@given(geometry=GEOMETRIES, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_sequence_moves_to_another_cache_bit_for_bit(geometry: tuple[int, int, int, str], data: st.DataObject) -> None:
    """Half of its tokens over one cache, then its blocks go to other places of another one, used before, and the rest follows there."""
    block_tokens, num_kv_heads, head_dim, _ = geometry
    stage = random_stage(num_kv_heads, head_dim)
    ids = np.random.default_rng(4).integers(0, VOCABULARY, 60).astype(np.int32)
    cut, num_blocks = data.draw(st.integers(1, 59)), -(-60 // block_tokens)
    old, new = ([cache_of(9, geometry) for _ in range(2)] for _ in range(2))
    from_blocks, to_blocks = (np.array(data.draw(st.permutations(range(9)))[:num_blocks], np.int32) for _ in range(2))
    logits_of(stage, new, ids[::-1].copy(), 0, np.arange(9, dtype=np.int32))
    logits_of(stage, old, ids[:cut], 0, from_blocks)
    for source, target in zip(old, new, strict=True):
        for from_block, to_block in zip(from_blocks, to_blocks, strict=True):
            data_of_block = source.read_block(int(from_block))
            assert len(data_of_block) == source.block_bytes == source.size_bytes // 9
            target.write_block(int(to_block), data_of_block)
            assert target.read_block(int(to_block)) == data_of_block
    expected = logits_of(stage, old, ids[cut:], cut, from_blocks)
    assert np.array_equal(logits_of(stage, new, ids[cut:], cut, to_blocks), expected)


def quantised(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Rows [16, numbers] as the wire would have them: the bytes of their scales [scales, 16], and their int8 [16, numbers]."""
    blocks = np.frombuffer(encode_rows(rows, "Q8_0"), np.uint8).reshape(len(rows), -1, 34)
    scales = blocks[:, :, :2].transpose(1, 0, 2)
    return np.ascontiguousarray(scales), blocks[:, :, 2:].reshape(len(rows), -1)[:, : rows.shape[1]]


@given(num_kv_heads=st.integers(1, 3), head_dim=st.sampled_from((2, 16, 32, 34, 48, 80)))
@settings(max_examples=12, deadline=None)
def test_a_quantised_cache_has_the_blocks_of_the_wire(num_kv_heads: int, head_dim: int) -> None:
    """Those of the numbers that a cache of float32 holds: in each head scales and int8 of the keys, then of the values."""
    stage, ids = random_stage(num_kv_heads, head_dim, num_layers=1), np.arange(16, dtype=np.int32)
    caches = [KvCache(1, 16, num_kv_heads, head_dim, head_dim, element_type) for element_type in ("F32", "Q8_0")]
    for cache in caches:
        logits_of(stage, [cache], ids, 0, np.zeros(1, np.int32))
    heads = np.frombuffer(caches[0].read_block(0), np.float32).reshape(num_kv_heads, -1)
    expected = b""
    for head in heads:
        scales, numbers = quantised(np.ascontiguousarray(head[: 16 * head_dim].reshape(head_dim, 16).T))
        expected += scales.tobytes() + np.ascontiguousarray(numbers.T).tobytes()
        expected += b"".join(part.tobytes() for part in quantised(head[16 * head_dim :].reshape(16, -1)))
    assert caches[1].read_block(0) == expected


def test_blocks_hold_each_number_in_one_place() -> None:
    """A block of another id is untouched, and a block's bytes are those that were written."""
    cache = KvCache(5, 16, 3, 10, 10)
    written = np.random.default_rng(1).integers(0, 256, cache.block_bytes).astype(np.uint8).tobytes()
    cache.write_block(3, written)
    assert [cache.read_block(i) for i in range(5)] == [bytes(cache.block_bytes)] * 3 + [written, bytes(cache.block_bytes)]


@given(geometry=GEOMETRIES, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_resizing_keeps_the_blocks_that_remain(geometry: tuple[int, int, int, str], sizes: list[int]) -> None:
    cache, numbers = cache_of(7, geometry), np.random.default_rng(2)
    blocks: list[bytes] = []
    for num_blocks in (7, *sizes):
        cache.resize(num_blocks)
        blocks = blocks[:num_blocks]
        blocks += [bytes(cache.block_bytes)] * (num_blocks - len(blocks))
        assert [cache.read_block(i) for i in range(num_blocks)] == blocks
        assert (cache.num_blocks, cache.size_bytes) == (num_blocks, num_blocks * cache.block_bytes)
        blocks[-1] = numbers.bytes(cache.block_bytes)
        cache.write_block(num_blocks - 1, blocks[-1])


def test_a_sequence_goes_on_after_resizing() -> None:
    """It grows into a block that is new, which moves to a lower place before the cache shrinks again."""
    stage, kv = random_stage(2, 16), [KvCache(4, 16, 2, 16, 16) for _ in range(2)]
    ids, in_order = np.random.default_rng(4).integers(0, VOCABULARY, 64).astype(np.int32), np.arange(4, dtype=np.int32)
    expected = logits_of(stage, [KvCache(4, 16, 2, 16, 16) for _ in range(2)], ids, 0, in_order)
    got = [logits_of(stage, kv, ids[:30], 0, in_order)]
    for cache in kv:
        cache.resize(3000)
    got.append(logits_of(stage, kv, ids[30:50], 30, np.array([0, 1, 2, 2999], np.int32)))
    for cache in kv:
        cache.write_block(3, cache.read_block(2999))
        cache.resize(4)
    got.append(logits_of(stage, kv, ids[50:], 50, in_order))
    assert np.array_equal(np.concatenate(got), expected)


def test_memory_is_taken_when_written_and_given_back() -> None:
    """16 MiB are written of a GiB; growing costs nothing, and shrinking leaves only what remains."""
    cache = KvCache(1024, 256, 8, 128, 128)
    assert cache.block_bytes == MIB
    assert cache.resident_bytes < MIB
    for block in range(16):
        cache.write_block(block, bytes([block + 1]) * cache.block_bytes)
    for num_blocks, resident in ((1024, 16 * MIB), (2048, 16 * MIB), (2, 2 * MIB), (512, 2 * MIB)):
        cache.resize(num_blocks)
        assert resident <= cache.resident_bytes < resident + 3 * MIB
    assert cache.read_block(1) == bytes([2]) * MIB


def test_no_cache_in_use_is_resized() -> None:
    """While a run of many rows goes on in another thread; it gives the bits that it gives alone."""
    stage = random_stage(4, 128, num_layers=4, max_rows=4096, max_context=4096)
    ids, part = np.arange(4096, dtype=np.int32) % VOCABULARY, StageSlice(4096, 0, np.arange(256, dtype=np.int32))
    kv = [KvCache(256, 16, 4, 128, 128) for _ in range(4)]
    results: list[NDArray[np.float32]] = []
    run = threading.Thread(target=lambda: results.append(stage.run(kv, ids, [part], np.array([4095]))))
    run.start()
    while run.is_alive() and not kv[0].resident_bytes:
        pass
    with pytest.raises(RuntimeError, match="used by a run in progress"):
        kv[2].resize(300)
    run.join()
    kv[2].resize(300)
    assert np.array_equal(results[0], stage.run([KvCache(256, 16, 4, 128, 128) for _ in range(4)], ids, [part], np.array([4095])))


def test_a_failed_run_lets_go_of_its_caches() -> None:
    stage, kv = random_stage(2, 16), [KvCache(4, 16, 2, 16, 16) for _ in range(2)]
    with pytest.raises(ValueError, match="block_table holds numbers from 4 to 4, expected 0 to 3"):
        logits_of(stage, kv, np.zeros(3, np.int32), 0, np.array([4], np.int32))
    for cache in kv:
        cache.resize(5)
    assert logits_of(stage, kv, np.zeros(3, np.int32), 0, np.array([4], np.int32)).shape == (3, VOCABULARY)


def test_mistakes() -> None:
    cache = KvCache(3, 16, 2, 16, 16)
    for block_id in (-1, 3):
        with pytest.raises(ValueError, match=f"block_id is {block_id}, expected an integer from 0 to 2"):
            cache.read_block(block_id)
        with pytest.raises(ValueError, match=f"block_id is {block_id}, expected an integer from 0 to 2"):
            cache.write_block(block_id, bytes(cache.block_bytes))
    for size_bytes in (0, cache.block_bytes - 1, cache.block_bytes + 1):
        with pytest.raises(ValueError, match=f"data has {size_bytes} bytes, expected {cache.block_bytes}"):
            cache.write_block(0, bytes(size_bytes))
    with pytest.raises(ValueError, match="num_blocks is 0, expected an integer from 1"):
        cache.resize(0)


def test_resizing_that_fails_changes_nothing() -> None:
    cache = KvCache(2, 4096, 64, 256, 256)
    cache.write_block(1, bytes([7]) * cache.block_bytes)
    with pytest.raises(MemoryError, match="no memory for 16777216 blocks of 268435456 bytes"):
        cache.resize(1 << 24)
    assert (cache.num_blocks, cache.size_bytes) == (2, 2 * cache.block_bytes)
    assert cache.read_block(1) == bytes([7]) * cache.block_bytes
