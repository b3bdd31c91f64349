"""Models of distributed-llama (`.m`, since version 0.7; https://github.com/b4rtaz/distributed-llama, src/llm.cpp and converter/writer.py).

Layout: i32 magic, i32 size of the header, pairs of i32 key and value, then the weights one after the other without an index. Matrices are
stored as [outputs, inputs] in one type (Q40 and Q80 are GGUF's Q4_0 and Q8_0), embedding, norms and routers in F32. What the header says
is offered under the names that config.json has for it. Rows of q and k of a llama are permuted so that rotary pairs lie side by side.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.containers.container import Container, ContainerFile, Conventions, StoredTensor
from dairllm.model_files.containers.metadata import MetadataValue
from dairllm.model_files.containers.regular_files import names_in, opened
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel

MAGIC = b"\xcd\xab\x00\x0a"
TOKENIZER = "tokenizer.t"
MAX_TENSORS = 1 << 16
MAX_HEADER_BYTES = 4096
MAX_NUMBER = 1 << 27
_LLAMA, _QWEN3, _QWEN3_MOE = 0xABCD00, 0xABCD01, 0xABCD02
_ARCHITECTURES = {_LLAMA: "llama", _QWEN3: "qwen3", _QWEN3_MOE: "qwen3_moe"}
_FORMATS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q8_0"}
_EPSILONS = {5: 1e-5, 6: 1e-6}
_NEOX_ROPE, _SILU = 1, 1
_KEYS = (
    *("version", "architecture", "dim", "hidden_dim", "layers", "heads", "kv_heads", "experts", "active_experts", "vocab"),
    *("context", "activation", "rope_theta", "weight_type", "rope_factor", "rope_low", "rope_high", "rope_original", "rope_type"),
    *("head_dim", "epsilon", "expert_dim"),
)
"""By number."""
_ROPE_NUMBERS = ("rope_theta", "rope_low", "rope_high", "rope_original")
_DEFAULTS = {
    **{"version": 0, "experts": 0, "active_experts": 0, "activation": _SILU, "rope_theta": 10_000, "rope_factor": 1, "rope_low": 1},
    **{"rope_high": 1, "rope_original": 1, "rope_type": 0, "head_dim": 0, "epsilon": 5, "expert_dim": 0, "hidden_dim": 0},
}


def read_distributed_llama(path: Path) -> Container:
    """Raises CorruptModelFile for a damaged or truncated file, UnsupportedModel for a kind that is not known."""
    with opened(path) as (file, size_bytes):
        preamble = file.read(8)
        header_bytes = int.from_bytes(preamble[4:], "little", signed=True)
        if not 8 < header_bytes <= min(MAX_HEADER_BYTES, size_bytes) or header_bytes % 8:
            raise _corrupt(path, f"its header has {header_bytes} bytes in a file of {size_bytes}; expected pairs of numbers")
        numbers = np.frombuffer(file.read(header_bytes - 8), "<i4").tolist()
    model = _Model(path, numbers)
    return Container(
        path,
        model.config(),
        kind="distributed-llama file",
        conventions=Conventions.TRANSFORMERS,
        name=path.stem,
        files=(ContainerFile(path, size_bytes),),
        tensors=model.tensors(header_bytes, size_bytes),
        companions=_tokenizer_beside(path),
    )


class _Stored(NamedTuple):
    """A tensor as the order of the file gives it."""

    name: str
    block_format: str
    shape: tuple[int, ...]


class _Model:
    """What the header says."""

    def __init__(self, path: Path, numbers: list[int]) -> None:
        self._path = path
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        unknown = [key for key, _ in pairs if not 0 <= key < len(_KEYS)]
        if unknown or len({key for key, _ in pairs}) != len(pairs):
            raise _corrupt(path, f"its header has the keys {[key for key, _ in pairs]}; expected different ones from 0 to {len(_KEYS) - 1}")
        self._values: dict[str, int] = _DEFAULTS | {_KEYS[key]: value for key, value in pairs}
        self._check()

    def config(self) -> Mapping[str, MetadataValue]:
        """As config.json would say it."""
        values, architecture = self._values, self._values["architecture"]
        config: dict[str, MetadataValue] = {
            "model_type": _ARCHITECTURES[architecture],
            "hidden_size": values["dim"],
            "intermediate_size": values["hidden_dim"],
            "num_hidden_layers": values["layers"],
            "num_attention_heads": values["heads"],
            "num_key_value_heads": values["kv_heads"],
            "head_dim": self._head_dim,
            "vocab_size": values["vocab"],
            "max_position_embeddings": values["context"],
            "rms_norm_eps": _EPSILONS[values["epsilon"]],
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "rope_parameters": self._rope(),
        }
        if architecture == _LLAMA:
            config["rope_interleave"] = True
        if values["experts"]:
            config |= {"num_experts": values["experts"], "num_experts_per_tok": values["active_experts"], "norm_topk_prob": True}
            config |= {"moe_intermediate_size": values["expert_dim"], "decoder_sparse_step": 1}
        return config

    def tensors(self, offset: int, file_bytes: int) -> dict[str, StoredTensor]:
        """All, back to back from this offset to the end of the file."""
        found: dict[str, StoredTensor] = {}
        for tensor in itertools.islice(self._order(), MAX_TENSORS + 1):
            block_format = BLOCK_FORMATS[tensor.block_format]
            if tensor.shape[-1] % block_format.block_size:
                rows = f"{tensor.name} has rows of {tensor.shape[-1]} numbers"
                raise _corrupt(self._path, f"{rows}; expected whole blocks of {block_format.name}")
            size_bytes = math.prod(tensor.shape) // block_format.block_size * block_format.block_bytes
            found[tensor.name] = StoredTensor(tensor.name, block_format, tensor.shape, 0, offset, size_bytes)
            offset += size_bytes
            if offset > file_bytes:
                end = f"but the file ends at byte {file_bytes}; it may not be complete"
                raise _corrupt(self._path, f"{tensor.name} ends at byte {offset}, {end}")
        if len(found) > MAX_TENSORS:
            raise _corrupt(self._path, f"its header gives more than {MAX_TENSORS} tensors; expected fewer")
        if offset != file_bytes:
            raise _corrupt(self._path, f"its weights end at byte {offset}, but the file ends at byte {file_bytes}")
        return found

    @property
    def _head_dim(self) -> int:
        return self._values["head_dim"] or self._values["dim"] // self._values["heads"]

    def _check(self) -> None:
        missing = [name for name in _KEYS if name not in self._values]
        if missing:
            raise _corrupt(self._path, f"its header lacks {', '.join(missing)}")
        for name in ("dim", "layers", "heads", "kv_heads", "vocab", "context", "rope_factor"):
            self._require(name, range(1, MAX_NUMBER), "a positive number")
        for name in ("hidden_dim", "experts", "active_experts", "expert_dim", "head_dim", *_ROPE_NUMBERS):
            self._require(name, range(MAX_NUMBER), "a number from 0 on")
        self._require("architecture", _ARCHITECTURES, ", ".join(_ARCHITECTURES.values()))
        self._require("weight_type", _FORMATS, ", ".join(_FORMATS.values()))
        self._require("epsilon", _EPSILONS, "5 or 6, for 1e-5 or 1e-6")
        self._require("activation", (_SILU,), "1, for silu: distributed-llama computes no other")
        self._require("rope_type", range(3), "0 to 2")
        if bool(self._values["experts"]) != (self._values["architecture"] == _QWEN3_MOE):
            kind = _ARCHITECTURES[self._values["architecture"]]
            raise UnsupportedModel(f"{self._path} is a {kind} with {self._values['experts']} experts, which is not known")

    def _require(self, name: str, allowed: range | Mapping[int, object] | tuple[int, ...], expected: str) -> None:
        value = self._values[name]
        if value not in allowed:
            raise UnsupportedModel(f"{self._path} has {name} {value} in its header; expected {expected}")

    def _rope(self) -> Mapping[str, MetadataValue]:
        """Scaled as Llama 3.1's, unless the factor is 1 or pairs are (i, i + dim/2)."""
        values = self._values
        is_neox = values["architecture"] != _LLAMA or values["rope_type"] == _NEOX_ROPE
        rope: dict[str, MetadataValue] = {"rope_type": "default", "rope_theta": float(values["rope_theta"])}
        if is_neox or values["rope_factor"] == 1:
            return rope
        scaling = {"factor": "rope_factor", "low_freq_factor": "rope_low", "high_freq_factor": "rope_high"}
        rope |= {name: float(values[key]) for name, key in scaling.items()}
        return rope | {"rope_type": "llama3", "original_max_position_embeddings": values["rope_original"]}

    def _order(self) -> Iterator[_Stored]:
        values, weights = self._values, _FORMATS[self._values["weight_type"]]
        dim, vocab = values["dim"], values["vocab"]
        yield _Stored("model.embed_tokens.weight", "F32", (vocab, dim))
        for layer in range(values["layers"]):
            yield from (_Stored(f"model.layers.{layer}.{name}", block_format, shape) for name, block_format, shape in self._layer())
        yield _Stored("model.norm.weight", "F32", (dim,))
        yield _Stored("lm_head.weight", weights, (vocab, dim))

    def _layer(self) -> Iterator[_Stored]:
        values, weights, head_dim = self._values, _FORMATS[self._values["weight_type"]], self._head_dim
        dim, q_dim, kv_dim = values["dim"], values["heads"] * head_dim, values["kv_heads"] * head_dim
        for name, shape in {"q": (q_dim, dim), "k": (kv_dim, dim), "v": (kv_dim, dim), "o": (dim, q_dim)}.items():
            yield _Stored(f"self_attn.{name}_proj.weight", weights, shape)
        if values["experts"]:
            yield _Stored("mlp.gate.weight", "F32", (values["experts"], dim))
        for expert in range(values["experts"]):
            yield from self._feed_forward(f"mlp.experts.{expert}", values["expert_dim"])
        if not values["experts"]:
            yield from self._feed_forward("mlp", values["hidden_dim"])
        if values["architecture"] != _LLAMA:
            yield from (_Stored(f"self_attn.{name}_norm.weight", "F32", (head_dim,)) for name in ("q", "k"))
        yield from (_Stored(f"{name}_layernorm.weight", "F32", (dim,)) for name in ("input", "post_attention"))

    def _feed_forward(self, where: str, width: int) -> Iterator[_Stored]:
        dim, weights = self._values["dim"], _FORMATS[self._values["weight_type"]]
        for name, shape in {"gate": (width, dim), "down": (dim, width), "up": (width, dim)}.items():
            yield _Stored(f"{where}.{name}_proj.weight", weights, shape)


def _tokenizer_beside(path: Path) -> dict[str, Path]:
    """The tokenizer of the same name, else the only one in the folder."""
    found = [name for name in names_in(path.parent) if name.endswith(".t")]
    chosen = f"{path.stem}.t" if f"{path.stem}.t" in found else found[0] if len(found) == 1 else None
    return {TOKENIZER: path.with_name(chosen)} if chosen else {}


def _corrupt(path: Path, sentence: str) -> CorruptModelFile:
    return CorruptModelFile(f"{path} is not a sound distributed-llama file: {sentence}")
