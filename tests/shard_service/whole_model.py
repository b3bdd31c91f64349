"""A model run by the kernels alone, without a shard process: what the processes' tokens are compared with."""

import numpy as np

from dairllm.kernels_pyx import KvCache, PackedMatrix, Stage, StageSlice, StageSpec, dequantize
from dairllm.model_files.manifest import TensorInfo
from tests.shard_service.fake_coordinator import CONTEXT, KV_BLOCK_TOKENS, KV_BLOCKS, FakeCoordinator


class WholeModel:
    def __init__(self, coordinator: FakeCoordinator) -> None:
        assert coordinator.manifest is not None
        assert coordinator.model is not None
        self._data = coordinator.model.read_bytes()
        spec, units = coordinator.manifest.spec, coordinator.manifest.units
        self._stage = Stage(_stage_spec(spec), max_rows=CONTEXT, max_context=CONTEXT)
        weights = [{tensor.role: self._weights(tensor) for tensor in unit.tensors} for unit in units]
        self._stage.set_embedding(weights[0]["token_embedding"])
        for index, layer in enumerate(weights[1:-1]):
            self._stage.add_layer(index, layer)
        self._stage.set_head(weights[-1]["output_norm"], weights[-1]["output"])
        self._kv = [KvCache(KV_BLOCKS, KV_BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim) for _ in range(spec.num_layers)]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens: list[int] = []
        position, pending = 0, prompt
        table = np.arange(KV_BLOCKS, dtype=np.int32)
        while len(tokens) < count:
            ids = np.array(pending, np.int32)
            logits = self._stage.run(self._kv, ids, [StageSlice(len(ids), position, table, None)], np.array([len(ids) - 1], np.int32))
            position += len(ids)
            tokens.append(int(logits[0].argmax()))
            pending = [tokens[-1]]
        return tokens

    def _weights(self, tensor: TensorInfo) -> object:
        data = self._data[tensor.offset : tensor.offset + tensor.size_bytes]
        if len(tensor.shape) == 1:
            return dequantize(tensor.block_format, data, tensor.shape[0])
        matrix = PackedMatrix(tensor.block_format, *tensor.shape)
        matrix.pack_rows(0, data)
        return matrix


def _stage_spec(spec: object) -> StageSpec:
    names = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "rope_dim", "rope_theta", "rope_interleaved")
    names += ("rope_freq_factors", "rms_norm_eps", "attention_scale", "num_layers")
    return StageSpec(**{name: getattr(spec, name) for name in names})
