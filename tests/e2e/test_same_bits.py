"""Rule 3 of the architecture, on whole clusters: the same tokens and the same log-probabilities, to the last bit, whoever computes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dairllm.kernels_pyx import BLOCK_FORMATS, WIRE_ENCODINGS
from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from tests.instruments.clusters import REQUEST_TIMEOUT_S, Cluster, shards
from tests.tiny_gguf import write_tiny_llama

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "smollm2.json").read_text())
PROMPTS = [case["prompt_ids"][: case["n_prompt"] - cut] for case in GOLDEN["cases"] for cut in (0, 9)]
NUM_TOKENS = 24
ISAS = ("scalar", "avx2", "avx512vnni")


def answer_to(http: str, prompt: list[int], seed: int | None = None) -> Any:
    """Tokens and log-probabilities, as the API gives them: equal JSON means equal bits."""
    sampling = {"temperature": 0} if seed is None else {"temperature": 0.9, "top_p": 0.95, "seed": seed}
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "logprobs": 5, "ignore_eos": True, **sampling}
    response = httpx.post(f"{http}/v1/completions", json=body, timeout=REQUEST_TIMEOUT_S, trust_env=False)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"], choice["logprobs"]


def answers_of(cluster: Cluster) -> dict[str, Any]:
    """Every prompt alone, one of them sampled, then all at once: a batch of eight in other company at every step."""
    alone = [answer_to(cluster.http, prompt) for prompt in PROMPTS]
    sampled = answer_to(cluster.http, PROMPTS[1], seed=7)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: answer_to(cluster.http, prompt), PROMPTS))
    assert together == alone, "a batch of eight changes no bit"
    return {"alone": alone, "sampled": sampled}


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> Iterator[dict[str, Any]]:
    with Cluster(smollm2_path, shards(1)) as cluster:
        yield answers_of(cluster)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "isas", "threads"),
    [
        (1, ("avx2",), 2),
        (2, (None,), 2),
        (2, ("avx2", "avx512vnni"), 1),
        (3, ISAS, 1),
        (5, (None, "avx2"), 1),
    ],
)
def test_any_cluster_gives_the_same_bits(
    smollm2_path: Path, reference: dict[str, Any], count: int, isas: tuple[str | None, ...], threads: int
) -> None:
    with Cluster(smollm2_path, shards(count, isas, threads)) as cluster:
        assert len({shard["stage"] for shard in cluster.state()["shards"]}) == count
        assert answers_of(cluster) == reference


@pytest.mark.parametrize("wire", WIRE_ENCODINGS)
def test_every_encoding_gives_the_same_bits_on_any_plan(tmp_path: Path, wire: str) -> None:
    """One shard rounds between its layers what five send each other: five for the five units of a model with three layers."""
    model = write_tiny_llama(tmp_path / "tiny.gguf", block_format="Q8_0", num_layers=3)
    prompts = [[1, 2, 3, 4, 5], list(range(40, 80))]
    answers, arithmetic = [], set()
    for count, isas, threads in ((1, (None,), 1), (2, ("scalar",), 1), (5, ("avx2", "scalar"), 2)):
        with Cluster(model, shards(count, isas, threads), wire=wire) as cluster:
            answers.append([answer_to(cluster.http, prompt) for prompt in prompts])
            arithmetic.add(cluster.state()["arithmetic"])
    assert answers[0] == answers[1] == answers[2]
    assert arithmetic == {str(Arithmetic(wire, "F16"))}


def test_a_quantised_kv_cache_gives_the_same_bits_on_any_plan(tmp_path: Path) -> None:
    """A head of 20 numbers is shorter than a block."""
    model = write_tiny_llama(tmp_path / "tiny.gguf", block_format="F32", num_layers=3, hidden_size=80, num_heads=4, num_kv_heads=2)
    prompts = [[1, 2, 3, 4, 5], list(range(40, 80))]
    answers, arithmetic = [], set()
    for count, isas in ((1, (None,)), (3, ("scalar", "avx2"))):
        with Cluster(model, shards(count, isas), arguments=("--kv-cache", "Q8_0")) as cluster:
            answers.append([answer_to(cluster.http, prompt) for prompt in prompts])
            arithmetic.add(cluster.state()["arithmetic"])
    assert answers[0] == answers[1]
    assert arithmetic == {str(Arithmetic(DEFAULT_ARITHMETIC.wire, "Q8_0"))}


def test_a_mixture_of_all_element_types_gives_the_same_bits_on_any_plan(tmp_path: Path) -> None:
    """As in files of llama.cpp's quantiser, whose matrices differ in type within a layer; here no two neighbours have the same."""
    model = write_tiny_llama(
        tmp_path / "tiny.gguf",
        block_format=list(BLOCK_FORMATS),
        num_layers=3,
        hidden_size=256,
        intermediate_size=512,
        num_heads=8,
        num_kv_heads=4,
    )
    prompts = [[1, 2, 3, 4, 5], list(range(40, 80))]
    answers = []
    for count, isas in ((1, (None,)), (2, ("scalar",)), (3, ISAS)):
        with Cluster(model, shards(count, isas)) as cluster:
            answers.append([answer_to(cluster.http, prompt) for prompt in prompts])
    assert answers[0] == answers[1] == answers[2]
