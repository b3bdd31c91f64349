"""The architectures that can be run: one module each, which defines ARCHITECTURE.

Adding a model adds a file here and edits nothing else: the package is listed, not maintained. What several of them share is in
`checkpoints`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from dairllm.model_files.checkpoints.architecture import Architecture
from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel


@cache
def architectures() -> Mapping[str, Architecture]:
    """All of them, by name."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found: list[Architecture] = [importlib.import_module(f"{__name__}.{name}").ARCHITECTURE for name in modules]
    return {architecture.name: architecture for architecture in found}


def architecture_of(container: Container) -> Architecture:
    """As the container's metadata name it: of a model that also sees or hears, its text. UnsupportedModel, with the list of those that are
    known, for another one."""
    if container.conventions is Conventions.GGUF:
        return _find("architecture", container.text("general.architecture"), {one.name: one for one in architectures().values()})
    by_type = {model_type: one for one in architectures().values() for model_type in one.model_types}
    text = container.section("text_config")
    named = text.text("model_type", container.text("model_type", ""))
    if not named:
        raise CorruptModelFile(f"{container.path} lacks the metadata key model_type")
    return _find("model_type", named, by_type)


def _find(what: str, name: str, known: Mapping[str, Architecture]) -> Architecture:
    if name not in known:
        raise UnsupportedModel(f"{what} {name[:80]!r} is not supported; expected one of {', '.join(sorted(known))}")
    return known[name]
