"""What one file of `architectures` says: how a model's description is read, and what its tensors are called."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dairllm.model_files.checkpoints.config import Config
from dairllm.model_files.checkpoints.stored import Names, Stored, StoredPlace, find_place, names_of, part_of, tensor_of
from dairllm.model_files.checkpoints.tensor_names import GGUF_NAMES, GGUF_UNUSED, TRANSFORMERS_NAMES, TRANSFORMERS_UNUSED
from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import ModelSpec

_TEXT_PREFIXES = ("model.language_model.", "language_model.model.")
"""What `model.` is called where the text model is a part of one that also sees or hears."""
_OTHER_PARTS = (
    "model.visual.",
    "visual.",
    "vision_tower.",
    "model.vision_tower.",
    "audio_tower.",
    "model.audio_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "model.embed_vision.",
    "model.embed_audio.",
    "vision_model.",
    "mtp.",
    *("v.", "a.", "mm."),
)


class Checkpoint(Config):
    """A container as an architecture reads it."""

    def __init__(self, container: Container, architecture: "Architecture") -> None:
        super().__init__(container, architecture.name, architecture.defaults)
        self.architecture = architecture
        self.names = architecture.names_in(container)

    def has_tensor(self, role: str, layer: int = 0) -> bool:
        """Whether the tensor of a role is stored."""
        return find_place(self.container, self.names.get(role, ()), layer) is not None

    def rows_of(self, role: str) -> int:
        """Of a matrix outside the layers; CorruptModelFile if it is missing."""
        place = find_place(self.container, self.names[role], 0)
        tensor = None if place is None else self.container.tensors[place.stored.name_in(0)]
        if tensor is None or len(tensor.shape) < 2:
            raise CorruptModelFile(f"{self.container.path} lacks the matrix {self.names[role][0].name}")
        return tensor.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """name: as `general.architecture` of GGUF. model_types: as `model_type` of config.json. describe: makes the description, raising
    CorruptModelFile or UnsupportedModel, which names the key, for what it cannot.

    gguf, transformers: tensors that are called or stored otherwise than most (`tensor_names`). unused: tensors that may be there but are
    not needed, in either. defaults: what a config.json may leave out.
    """

    name: str
    model_types: Sequence[str] = ()
    describe: Callable[[Checkpoint], ModelSpec]
    gguf: Names = field(default_factory=dict)
    transformers: Names = field(default_factory=dict)
    unused: Sequence[str] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)

    def names_in(self, container: Container) -> Names:
        """Places of the tensor of each role, by the conventions of the container."""
        if container.conventions is Conventions.GGUF:
            return {**GGUF_NAMES, **self.gguf}
        names = {**TRANSFORMERS_NAMES, **self.transformers}
        prefix = next((one for one in _TEXT_PREFIXES if any(name.startswith(one) for name in container.tensors)), "model.")
        return {role: [_renamed(place, prefix) for place in places] for role, places in names.items()}

    def read_spec(self, container: Container) -> ModelSpec:
        """The description that the metadata gives."""
        checkpoint = Checkpoint(container, self)
        spec = self.describe(checkpoint)
        checkpoint.refuse_unread()
        return spec

    def unit_tensors(self, container: Container, spec: ModelSpec) -> list[tuple[TensorInfo, ...]]:
        """For each unit in order, its tensors in the order of the unit's digest. Raises CorruptModelFile for one that is missing or has
        another shape, UnsupportedModel, by name, for one that nobody needs."""
        names = self.names_in(container)
        used: set[str] = set()
        units = [tuple(self._tensors(container, names, spec, unit, used)) for unit in range(spec.num_units)]
        self._refuse_others(container, spec, used)
        return units

    def _tensors(self, container: Container, names: Names, spec: ModelSpec, unit: int, used: set[str]) -> Iterator[TensorInfo]:
        for role, shape in unit_shapes(spec, unit).items():
            place = self._place(container, names, role, max(0, unit - 1))
            used.update(names_of(container, place, shape))
            yield tensor_of(container, place, part_of(spec, unit), role, shape)

    def _place(self, container: Container, names: Names, role: str, layer: int) -> StoredPlace:
        place = find_place(container, names.get(role, ()), layer)
        if place is None:
            name = next((one.name_in(layer) for one in names.get(role, ())), role)
            raise CorruptModelFile(f"{container.path} lacks the tensor {name!r}, which a {self.name} model needs")
        return place

    def _refuse_others(self, container: Container, spec: ModelSpec, used: set[str]) -> None:
        unused = (*self.unused, *(GGUF_UNUSED if container.conventions is Conventions.GGUF else TRANSFORMERS_UNUSED))
        predicts = Config(container, self.name).integer("num_nextn_predict_layers", 0) > 0
        patterns = [re.compile(re.escape(name).replace(re.escape("{layer}"), r"\d+").replace(r"\*", ".*")) for name in unused]
        for name in sorted(container.tensors.keys() - used):
            is_later = predicts and (layer := re.search(r"(?:blk|layers)\.(\d+)\.", name)) is not None and int(layer[1]) >= spec.num_layers
            if not is_later and not name.startswith(_OTHER_PARTS) and not any(one.fullmatch(name) for one in patterns):
                raise UnsupportedModel(
                    f"{container.path} has the tensor {name!r}, which a {self.name} model with {spec.num_layers} layers does not use"
                )


def _renamed(place: Stored, prefix: str) -> Stored:
    """Where the text model has this prefix; its output matrix is beside it."""
    if place.name.startswith("model."):
        exponents = prefix + place.exponents.removeprefix("model.") if place.exponents else ""
        return place._replace(name=prefix + place.name.removeprefix("model."), exponents=exponents)
    return place._replace(name=prefix.removesuffix("model.") + place.name) if prefix.endswith(".model.") else place


def with_transforms(names: Mapping[str, Sequence[Stored]], roles: Sequence[str], *transforms: str) -> Names:
    """The same places of these roles, where the values are stored otherwise."""
    return {role: [place._replace(transforms=(*place.transforms, *transforms)) for place in names[role]] for role in roles}
