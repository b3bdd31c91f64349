"""Descriptions of models that tests are about, without files of them."""

from collections.abc import Sequence
from typing import Any

from dairllm.coordinator.planner import ModelDemand, UnitDemand
from dairllm.model_files.attention import Rope
from dairllm.model_files.dense_decoder import dense_decoder, dense_layer
from dairllm.model_files.spec import LayerSpec, ModelSpec

FEATURES = frozenset({"attention:full"})
"""What models ask for, and shards offer, where nothing is computed."""
FORMATS = frozenset({"Q4_0"})


def demand_of(name: str, digest: bytes, sizes: Sequence[int], *, tied: int = 0, kv_per_token: int = 0, context: int = 64) -> ModelDemand:
    """sizes: of embedding, layers and head in bytes. kv_per_token: bytes that each layer keeps for a token."""
    units = [UnitDemand(size, size, kv_per_token) for size in sizes]
    units[0], units[-1] = UnitDemand(sizes[0], 0, 0), UnitDemand(sizes[-1], sizes[-1], 0)
    return ModelDemand(name, digest, tuple(units), tied, FEATURES, FORMATS, context)


def layer_of(**changes: Any) -> LayerSpec:
    """Of a dense llama-like model of 64 wide rows."""
    rope = Rope(theta=10_000.0, dim=changes.get("head_dim", 32), interleaved=True)
    shape = {"intermediate_size": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-5, "rope": rope}
    return dense_layer(**{**shape, **changes})


def spec_of(num_layers: int = 1, *, layer: LayerSpec | None = None, **changes: Any) -> ModelSpec:
    outer = {"architecture": "llama", "name": "test", "hidden_size": 64, "vocab_size": 50, "context_length": 256}
    return dense_decoder((layer or layer_of(),) * num_layers, **{**outer, **changes})
