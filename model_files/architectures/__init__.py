"""The architectures that can be run: one module each, named after GGUF's `general.architecture`.

A module defines ARCHITECTURE. Adding a model adds a file here and edits nothing else: the package is listed, not maintained.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.gguf_file import GgufFile
from dairllm.model_files.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is laid out in GGUF.

    `read_spec` turns the metadata into a ModelSpec. `tensor_names` gives, for each unit in order, the tensor of each role that is
    in the file, in the order of the unit's digest. Both raise ModelFileError for what they cannot map, by name.
    """

    name: str
    read_spec: Callable[[GgufFile], ModelSpec]
    tensor_names: Callable[[GgufFile, ModelSpec], list[dict[str, str]]]


def architecture_names() -> list[str]:
    """Names of all supported architectures."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_architecture(name: str) -> Architecture:
    """The architecture of that name; UnsupportedModel, with the list of supported ones, if there is none."""
    if name not in architecture_names():
        raise UnsupportedModel(f"architecture {name!r} is not supported; expected one of {', '.join(architecture_names())}")
    architecture: Architecture = importlib.import_module(f"{__name__}.{name}").ARCHITECTURE
    return architecture
