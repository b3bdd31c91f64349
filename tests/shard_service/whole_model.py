"""A model run by the kernels alone, without a shard process: what the processes' tokens are compared with."""

import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import PackedMatrix, Stage, StageSlice, dequantize
from dairllm.model_files.manifest import TensorInfo
from dairllm.shard_service.assignment import CacheGeometry
from dairllm.shard_service.forward.stage_layers import stage_layer, stage_spec
from dairllm.shard_service.forward.stage_states import StageStates
from dairllm.shard_service.kv_cache.layers import make_cache, memory_of
from tests.shard_service.fake_coordinator import CONTEXT, KV_BLOCK_TOKENS, KV_BLOCKS, WIRE, FakeCoordinator


class WholeModel:
    def __init__(self, coordinator: FakeCoordinator) -> None:
        assert coordinator.manifest is not None
        assert coordinator.model is not None
        self._data = coordinator.model.read_bytes()
        spec, units = coordinator.manifest.spec, coordinator.manifest.units
        self._stage = Stage(stage_spec(spec, WIRE), max_rows=CONTEXT, max_context=CONTEXT)
        embedding, *layers, head = ({tensor.role: tensor for tensor in unit.tensors} for unit in units)
        self._stage.set_embedding(self._matrix(embedding["token_embedding"]))
        for index, layer in enumerate(layers):
            weights = {role: self._vector_or_matrix(tensor) for role, tensor in layer.items()}
            self._stage.add_layer(index, stage_layer(spec, index), weights)
        self._stage.set_head(self._vector(head["output_norm"]), self._matrix(head["output"]))
        geometry = CacheGeometry(KV_BLOCKS, KV_BLOCK_TOKENS, CONTEXT, CONTEXT)
        caches = [make_cache(layer, geometry, 1) for layer in spec.layers]
        self._kv, self._states = [memory_of(cache) for cache in caches], StageStates(caches, range(1, spec.head_index))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens: list[int] = []
        position, pending = 0, prompt
        table = np.arange(KV_BLOCKS, dtype=np.int32)
        while len(tokens) < count:
            ids = np.array(pending, np.int32)
            with self._states.used_by([StageSlice(len(ids), position, table)], self._stage.units_held) as slices:
                logits = self._stage.run(self._kv, ids, slices, np.array([len(ids) - 1], np.int32))
            position += len(ids)
            tokens.append(int(logits[0].argmax()))
            pending = [tokens[-1]]
        return tokens

    def _bytes(self, tensor: TensorInfo) -> bytes:
        (piece,) = tensor.pieces
        return self._data[piece.offset_bytes : piece.offset_bytes + piece.size_bytes]

    def _vector_or_matrix(self, tensor: TensorInfo) -> NDArray[np.float32] | PackedMatrix:
        return self._vector(tensor) if len(tensor.shape) == 1 else self._matrix(tensor)

    def _vector(self, tensor: TensorInfo) -> NDArray[np.float32]:
        return dequantize(tensor.block_format, self._bytes(tensor), tensor.shape[0])

    def _matrix(self, tensor: TensorInfo) -> PackedMatrix:
        matrix = PackedMatrix(tensor.block_format, *tensor.shape)
        matrix.pack_rows(0, self._bytes(tensor))
        return matrix
