"""The plan's part for one shard, as the protocol writes it."""

from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.model_files.spec import ModelSpec
from dairllm.v1 import model_pb2


def spec_to_proto(spec: ModelSpec) -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(
        architecture=spec.architecture,
        name=spec.name,
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        rms_norm_eps=spec.rms_norm_eps,
        rope_theta=spec.rope_theta,
        rope_dim=spec.rope_dim,
        rope_interleaved=spec.rope_interleaved,
        rope_freq_factors=spec.rope_freq_factors or (),
        attention_scale=spec.attention_scale,
    )


def unit_to_proto(unit: Unit) -> model_pb2.Unit:
    return model_pb2.Unit(
        index=unit.index,
        tensors=[_tensor_to_proto(tensor) for tensor in unit.tensors],
        size_bytes=unit.size_bytes,
        digest=bytes.fromhex(unit.digest),
    )


def _tensor_to_proto(tensor: TensorInfo) -> model_pb2.TensorInfo:
    return model_pb2.TensorInfo(
        name=tensor.name,
        role=tensor.role,
        block_format=tensor.block_format,
        shape=tensor.shape,
        offset_bytes=tensor.offset,
        size_bytes=tensor.size_bytes,
    )
