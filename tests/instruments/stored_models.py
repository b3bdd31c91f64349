"""Models in all the ways that people have them on a disk, made of small ones."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_gguf import read_safetensors

FloatArray = npt.NDArray[np.float32]

DISTRIBUTED_LLAMA_ARCHITECTURES = {"llama": 0xABCD00, "qwen3": 0xABCD01}
DISTRIBUTED_LLAMA_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 3}


def safetensors_bytes(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of tensors given by their dtype, shape and bytes (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def stored(values: FloatArray, dtype: str = "F32") -> tuple[str, Sequence[int], bytes]:
    """For `safetensors_bytes`."""
    if dtype == "BF16":
        return dtype, values.shape, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return dtype, values.shape, values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_sharded_folder(source: Path, folder: Path, num_files: int = 2, dtype: str = "F32") -> Path:
    """A folder of config.json and model.safetensors in F32, with its weights in several files and an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = read_safetensors(source / "model.safetensors")
    names, files = list(tensors), dict[str, str]()
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: stored(tensors[name], dtype) for name in names[number::num_files]}
        (folder / file).write_bytes(safetensors_bytes(part, {"format": "pt"}))
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_split(source: Path, folder: Path, num_parts: int = 3, *, stem: str = "tiny") -> list[Path]:
    """A GGUF file in parts, as llama-gguf-split cuts one."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    paths = [folder / f"{stem}-{number:05d}-of-{num_parts:05d}.gguf" for number in range(1, num_parts + 1)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
        for key, field in reader.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", num_parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[len(reader.tensors) * number // num_parts : len(reader.tensors) * (number + 1) // num_parts]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def write_hub_cache(cache: Path, owner: str, name: str, files: Sequence[Path]) -> Path:
    """The files in a hub's cache: blobs named by their hash, and a revision that links to them. Returns the revision's folder."""
    repository = cache / f"models--{owner}--{name}"
    snapshot = repository / "snapshots" / hashlib.sha1(name.encode()).hexdigest()
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in files:
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def write_ollama_store(store: Path, model: Path, *, name: str = "tiny", tag: str = "1b", layers: Sequence[Mapping[str, Any]] = ()) -> Path:
    """A model of Ollama's library with this file. Returns its blob. layers: further ones."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / name / tag
    for path in (blob, manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(model.read_bytes())
    own = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": model.stat().st_size}
    described = {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": [own, *layers]}
    manifest.write_text(json.dumps({"schemaVersion": 2, **described}))
    return blob


def write_distributed_llama(path: Path, source: Path, weight_type: str = "F32") -> Path:
    """A folder of a dense model (config.json, model.safetensors in F32) as distributed-llama's converter writes it."""
    config, tensors = json.loads((source / "config.json").read_text()), read_safetensors(source / "model.safetensors")
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    pairs = _header_of(config, weight_type)
    parts = [struct.pack("<2i", 0x0A00ABCD, 8 + 8 * len(pairs)), *(struct.pack("<2i", *pair) for pair in pairs.items())]
    parts.append(tensors["model.embed_tokens.weight"].tobytes())
    for layer in range(config["num_hidden_layers"]):
        of_layer = {name.split(".", 3)[3]: values for name, values in tensors.items() if name.startswith(f"model.layers.{layer}.")}
        for name in ("q", "k", "v", "o"):
            values = of_layer[f"self_attn.{name}_proj.weight"]
            is_permuted = name in heads and config["model_type"] == "llama"
            parts.append(_encoded(_side_by_side(values, heads[name]) if is_permuted else values, weight_type))
        parts += [_encoded(of_layer[f"mlp.{name}_proj.weight"], weight_type) for name in ("gate", "down", "up")]
        parts += [of_layer[name].tobytes() for name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight") if name in of_layer]
        parts += [of_layer[f"{name}_layernorm.weight"].tobytes() for name in ("input", "post_attention")]
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    path.write_bytes(b"".join([*parts, tensors["model.norm.weight"].tobytes(), _encoded(output, weight_type)]))
    return path


def _header_of(config: Mapping[str, Any], weight_type: str) -> dict[int, int]:
    rope = config["rope_parameters"]
    pairs = {
        **{0: 0, 1: DISTRIBUTED_LLAMA_ARCHITECTURES[config["model_type"]], 2: config["hidden_size"], 3: config["intermediate_size"]},
        **{4: config["num_hidden_layers"], 5: config["num_attention_heads"], 6: config["num_key_value_heads"], 7: 0, 8: 0},
        **{9: config["vocab_size"], 10: config["max_position_embeddings"], 11: 1, 12: int(rope["rope_theta"])},
        **{13: DISTRIBUTED_LLAMA_TYPES[weight_type], 18: 0, 19: config["head_dim"], 20: round(-np.log10(config["rms_norm_eps"]))},
    }
    if rope["rope_type"] == "llama3":
        scaling = {14: "factor", 15: "low_freq_factor", 16: "high_freq_factor", 17: "original_max_position_embeddings"}
        pairs |= {18: 2, **{key: int(rope[name]) for key, name in scaling.items()}}
    return pairs


def _side_by_side(rows: FloatArray, num_heads: int) -> FloatArray:
    """Rotary halves of each head to pairs."""
    halves = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _encoded(values: FloatArray, weight_type: str) -> bytes:
    if not weight_type.startswith("Q"):
        return stored(values, weight_type)[2]
    return bytes(gguf.quants.quantize(values, gguf.GGMLQuantizationType[weight_type]).tobytes())
