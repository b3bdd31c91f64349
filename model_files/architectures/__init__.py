"""The architectures that can be run: one module each, named after GGUF's `general.architecture`.

A module defines ARCHITECTURE. Adding a model adds a file here and edits nothing else: the package is listed, not maintained. What
several of them share is outside (`gguf_decoder`).
"""

import importlib
import pkgutil
from typing import Protocol

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.spec import ModelSpec


class Architecture(Protocol):
    """How one architecture is laid out in GGUF. Its methods raise ModelFileError for what they cannot map, by name."""

    @property
    def name(self) -> str: ...

    def read_spec(self, gguf: Container) -> ModelSpec:
        """The description that the metadata gives."""
        ...

    def tensor_names(self, gguf: Container, spec: ModelSpec) -> list[dict[str, str]]:
        """For each unit in order, the tensor of each role that it has, in the order of the unit's digest."""
        ...


def architecture_names() -> list[str]:
    """Names of all supported architectures."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_architecture(name: str) -> Architecture:
    """The architecture of that name; UnsupportedModel, with the list of supported ones, if there is none."""
    if name not in architecture_names():
        raise UnsupportedModel(f"architecture {name!r} is not supported; expected one of {', '.join(architecture_names())}")
    architecture: Architecture = importlib.import_module(f"{__name__}.{name}").ARCHITECTURE
    return architecture
