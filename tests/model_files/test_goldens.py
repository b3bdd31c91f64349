"""Descriptions of config.json are read as transformers reads them: the reference forward pass gives its logits for every tiny model."""

import numpy as np
import pytest

from dairllm.mesh.ranges.checks import out_of_range
from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.codec import spec_from_proto, spec_to_proto, unit_from_proto, unit_to_proto
from dairllm.model_files.containers import open_container
from dairllm.model_files.manifest import ModelFile, Unit, validate_units
from tests.instruments.golden import LARGEST_F32_ERROR, TINY
from tests.reference_forward import greedy, logits
from tests.role_tensors import read_model

FOLDERS = sorted(folder.name for folder in TINY.iterdir() if (folder / "golden.npz").exists())


@pytest.mark.parametrize("name", FOLDERS)
def test_the_reference_gives_the_golden_logits_and_tokens(name: str) -> None:
    spec, units = read_model(TINY / name)
    golden = np.load(TINY / name / "golden.npz")
    ids = golden["input_ids"].tolist()
    assert np.abs(logits(spec, units, ids) - golden["logits"]).max() < LARGEST_F32_ERROR
    expected = golden["greedy"].tolist()[:4]
    assert greedy(spec, units, ids, len(expected)) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_descriptions_of_all_families_travel(name: str) -> None:
    container = open_container(TINY / name)
    architecture = architecture_of(container)
    spec = architecture.read_spec(container)
    message = spec_to_proto(spec)
    assert spec_from_proto(message) == spec
    assert out_of_range(message) is None
    for index, tensors in enumerate(architecture.unit_tensors(container, spec)):
        unit = Unit(index=index, tensors=tensors, size_bytes=sum(tensor.size_bytes for tensor in tensors), digest=bytes(32))
        assert unit_from_proto(unit_to_proto(unit)) == unit
        validate_units(spec, [unit], [ModelFile(name=file.path.name, size_bytes=file.size_bytes) for file in container.files])
