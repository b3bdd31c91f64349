"""What a model's files say of it beside the weights, read by key with the type that is expected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dairllm.model_files.errors import CorruptModelFile

MetadataArray = npt.NDArray[np.generic]
MetadataValue = int | float | bool | str | list[Any] | MetadataArray | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    """path: of the file or folder, for messages. metadata: by key; what is null is left out. inside: keys of the section that this is.

    Each method raises CorruptModelFile, naming the key, if it is missing (and no default given) or of another type.
    """

    path: Path
    metadata: Mapping[str, MetadataValue]
    inside: str = field(default="", kw_only=True)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int:
            raise self._wrong(key, value, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if type(value) is not float and type(value) is not int:
            raise self._wrong(key, value, "a number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        value = self._value(key, default)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, value, "a list of strings")
        return value

    def array(self, key: str) -> MetadataArray | None:
        """An array of numbers, or None if it is missing."""
        value = self.metadata.get(key)
        if isinstance(value, list) and not value:
            return np.zeros(0, np.float32)
        if value is not None and not isinstance(value, np.ndarray):
            raise self._wrong(key, value, "an array of numbers")
        return value

    def section(self, key: str) -> "Metadata":
        """The keys inside `key`; none if it is missing."""
        value = self.metadata.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Metadata(self.path, value, inside=f"{self.inside}{key}.")

    def _value(self, key: str, default: MetadataValue | None) -> MetadataValue:
        value = self.metadata.get(key, default)
        if value is None:
            raise CorruptModelFile(f"{self.path} lacks the metadata key {self.inside}{key}")
        return value

    def _wrong(self, key: str, value: MetadataValue, expected: str) -> CorruptModelFile:
        return CorruptModelFile(f"{self.path} has {_describe(value)} as {self.inside}{key}; expected {expected}")


def _describe(value: MetadataValue) -> str:
    if isinstance(value, (list, np.ndarray)):
        return f"an array of {len(value)} values"
    return "an object" if isinstance(value, Mapping) else repr(value)[:80]


def metadata_from_json(value: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """Keys and values of a JSON object, in the types that Metadata has: lists of numbers become arrays, null is left out."""
    return {key: _from_json(one) for key, one in value.items() if one is not None}


def _from_json(value: Any) -> MetadataValue:
    if isinstance(value, dict):
        return metadata_from_json(value)
    if isinstance(value, list) and value and _are_numbers(value):
        return np.array(value, np.int64 if all(type(one) is int for one in value) else np.float64)
    found: MetadataValue = value
    return found


def _are_numbers(values: Sequence[Any]) -> bool:
    kinds = {type(one) for one in values}
    return kinds <= {int, float} and all(abs(one) < 1 << 63 for one in values if type(one) is int)
