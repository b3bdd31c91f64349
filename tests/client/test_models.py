"""`dairllm models` as people use it: against a server that speaks the hub's protocol, with a cache of its own for every test."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.instruments.clusters import Cluster, shards
from tests.instruments.commands import RunDairllm, dairllm_runner
from tests.instruments.hub import TOKEN, Fault, Hub, Repository
from tests.tiny_gguf import write_tiny_llama

TINY = Path(__file__).parent.parent / "data" / "tiny" / "llama"
FOLDER = {
    "config.json": (TINY / "config.json").read_bytes(),
    "model.safetensors": (TINY / "model.safetensors").read_bytes(),
    "pytorch_model.bin": b"\x80\x02" * 5000,
    "README.md": b"# A model",
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", with_tokenizer=True).read_bytes()


@pytest.fixture
def hub(gguf: bytes) -> Iterator[Hub]:
    files = {"tiny-Q4_0.gguf": gguf, "tiny-Q8_0.gguf": gguf + b"\0" * 32, "README.md": b"# Two models"}
    gated = Repository({"tiny.gguf": gguf}, licence="gemma", gated=True)
    with Hub({"Owner/Tiny-GGUF": Repository(files), "Owner/Folder": Repository(FOLDER), "Owner/Gated": gated}) as running:
        yield running


@pytest.fixture
def environment(clean_environment: dict[str, str], hub: Hub, tmp_path: Path) -> dict[str, str]:
    without = {name: value for name, value in clean_environment.items() if not name.startswith("HF_")}
    return without | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def models(environment: dict[str, str]) -> RunDairllm:
    run = dairllm_runner(environment)
    return lambda *arguments, stdin="": run("models", *arguments, stdin=stdin)


def fails(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("cli.py: ")
    return line


def pulled(models: RunDairllm, model: str) -> Path:
    result = models("pull", model, "--json")
    assert result.returncode == 0, result.stderr
    return Path(json.loads(result.stdout)["path"])


def test_a_model_of_the_hub_is_pulled_listed_inspected_and_removed(models: RunDairllm, gguf: bytes, hub: Hub) -> None:
    result = models("pull", "hf:Owner/Tiny-GGUF:Q4_0")
    assert result.returncode == 0, result.stderr
    assert "hf:Owner/Tiny-GGUF:Q4_0 is here: " in result.stdout
    path = pulled(models, "hf:Owner/Tiny-GGUF:q4_0")
    assert path.read_bytes() == gguf
    assert path.name == "tiny-Q4_0.gguf"
    assert len(hub.asked_for("/content/")) == 1, "what is here is not fetched again"
    (listed,) = json.loads(models("list", "--json").stdout)["models"]
    assert (listed["name"], listed["size_bytes"], listed["complete"]) == ("hf:Owner/Tiny-GGUF:Q4_0", len(gguf), True)
    inspected = json.loads(models("inspect", listed["name"], "--json").stdout)
    assert inspected["is_here"] is True
    assert inspected["stored"]["architecture"] == "llama"
    assert inspected["running"]["memory_bytes"] > 0
    removed = models("remove", listed["name"])
    assert removed.returncode == 0, removed.stderr
    assert not path.exists()
    assert json.loads(models("list", "--json").stdout)["models"] == []
    assert "nothing of hf:Owner/Tiny-GGUF" in fails(models("remove", listed["name"]))


def test_of_several_the_usual_one_is_taken_and_said(models: RunDairllm, hub: Hub) -> None:
    result = models("pull", "hf:Owner/Tiny-GGUF")
    assert result.returncode == 0, result.stderr
    assert "Q4_0 is taken" in result.stderr
    assert "Q8_0" in result.stderr
    assert "tiny-Q4_0.gguf" in result.stdout


def test_one_of_two_models_is_removed_without_the_other(models: RunDairllm) -> None:
    kept, gone = pulled(models, "hf:Owner/Tiny-GGUF:Q8_0"), pulled(models, "hf:Owner/Tiny-GGUF:Q4_0")
    assert models("remove", "hf:Owner/Tiny-GGUF:Q4_0").returncode == 0
    assert (kept.is_file(), gone.exists()) == (True, False)
    assert len(list((kept.parents[2] / "blobs").iterdir())) == 1
    assert models("remove", "hf:Owner/Tiny-GGUF").returncode == 0
    assert not kept.exists()


def test_a_folder_of_safetensors_is_fetched_with_what_is_needed(models: RunDairllm, hub: Hub) -> None:
    path = pulled(models, "hf:Owner/Folder")
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors"}
    assert (path / "model.safetensors").read_bytes() == FOLDER["model.safetensors"]


def test_other_programs_of_the_hub_find_it_and_so_does_offline_mode(models: RunDairllm, environment: dict[str, str], hub: Hub) -> None:
    path = pulled(models, "hf:Owner/Tiny-GGUF:Q4_0")
    program = "from huggingface_hub import hf_hub_download as get; print(get('Owner/Tiny-GGUF', 'tiny-Q4_0.gguf'))"
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=offline, timeout=60, check=True)
    assert found.stdout.strip() == str(path)
    without_network = dairllm_runner(offline)
    hub.asked.clear()
    assert pulled(lambda *arguments, stdin="": without_network("models", *arguments), "hf:Owner/Tiny-GGUF:Q4_0") == path
    assert hub.asked == []
    assert "it has Q4_0" in fails(without_network("models", "pull", "hf:Owner/Tiny-GGUF:Q8_0"))
    assert "HF_HUB_OFFLINE is set" in fails(without_network("models", "pull", "hf:Owner/Folder"))


def test_what_other_programs_fetched_is_used(models: RunDairllm, environment: dict[str, str], hub: Hub) -> None:
    program = "from huggingface_hub import hf_hub_download as get; print(get('Owner/Tiny-GGUF', 'tiny-Q4_0.gguf'))"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=True)
    hub.asked.clear()
    assert str(pulled(models, "hf:Owner/Tiny-GGUF:Q4_0")) == there.stdout.strip()
    assert hub.asked_for("/content/") == []


def test_without_a_hub_what_is_here_is_used_and_that_is_said(models: RunDairllm, environment: dict[str, str]) -> None:
    path = pulled(models, "hf:Owner/Tiny-GGUF:Q4_0")
    unreachable = dairllm_runner(environment | {"HF_ENDPOINT": "http://127.0.0.1:1"})
    result = unreachable("models", "pull", "hf:Owner/Tiny-GGUF:Q4_0")
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stdout
    assert "http://127.0.0.1:1 does not answer" in result.stderr
    assert "http://127.0.0.1:1 does not answer" in fails(unreachable("models", "pull", "hf:Owner/Folder"))


def test_a_gated_model_needs_a_token(models: RunDairllm, environment: dict[str, str], hub: Hub) -> None:
    line = fails(models("pull", "hf:Owner/Gated"))
    assert f"Owner/Gated is gated: accept its licence at {hub.url}/Owner/Gated, and set HF_TOKEN" in line
    hub.asked.clear()
    with_token = dairllm_runner(environment | {"HF_TOKEN": TOKEN})
    assert with_token("models", "pull", "hf:Owner/Gated").returncode == 0
    assert all(not one.authorization for one in hub.asked if one.server == "content"), "a token never leaves the hub"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("hf:Owner/None", "/Owner/None does not exist, or is private"),
        ("hf:Owner/Tiny-GGUF@v9", "has no such revision"),
        ("hf:Owner/Tiny-GGUF:Q2_K", "no type 'Q2_K'; it has Q4_0"),
        ("hf:Owner/Folder:pytorch_model.bin", "can run code when it is opened"),
        ("Owner/Tiny-GGUF:Q4_0", "write hf:Owner/Tiny-GGUF:Q4_0"),
        ("hf:Owner", "expected hf:OWNER/NAME"),
        ("nosuch:1b", "'nosuch:1b' is neither a file nor a known model"),
    ],
)
def test_what_is_not_there_is_told_with_what_to_do(models: RunDairllm, model: str, told: str) -> None:
    assert told in fails(models("pull", model))
    assert told in fails(models("inspect", model))


def test_a_busy_hub_is_asked_again(models: RunDairllm, hub: Hub) -> None:
    hub.api_faults.extend([Fault(status=429, headers={"Retry-After": "1"}), Fault(status=503)])
    hub.content_faults.extend([Fault(after_bytes=1000), Fault(status=503), Fault(after_bytes=50_000)])
    began_s = time.monotonic()
    assert pulled(models, "hf:Owner/Tiny-GGUF:Q4_0").is_file()
    assert time.monotonic() - began_s >= 1


def test_a_pull_that_is_killed_goes_on_where_it_was(models: RunDairllm, environment: dict[str, str], gguf: bytes, hub: Hub) -> None:
    big = gguf + bytes(20_000_000)
    hub.repositories["Owner/Big"] = Repository({"big.gguf": big})
    hub.content_faults.extend([Fault(after_bytes=12_000_000), Fault(silent_s=60)])
    command = [sys.executable, "-m", "dairllm.client.cli", "models", "pull", "hf:Owner/Big"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        while len(hub.asked_for("/content/")) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    (listed,) = json.loads(models("list", "--json").stdout)["models"]
    assert (listed["name"], listed["complete"]) == ("hf:Owner/Big", False)
    hub.asked.clear()
    assert pulled(models, "hf:Owner/Big").read_bytes() == big
    (asked,) = hub.asked_for("/content/")
    assert int(asked.range.removeprefix("bytes=").removesuffix("-")) >= 10_000_000


def test_wrong_content_is_refused_and_fetched_anew(models: RunDairllm, gguf: bytes, hub: Hub) -> None:
    hub.content_faults.append(Fault(content=gguf[:-1] + b"x"))
    assert "was fetched with the digest" in fails(models("pull", "hf:Owner/Tiny-GGUF:Q4_0"))
    assert pulled(models, "hf:Owner/Tiny-GGUF:Q4_0").read_bytes() == gguf


def test_a_hub_that_tells_no_digests_works_too(models: RunDairllm, gguf: bytes, hub: Hub) -> None:
    hub.repositories["Owner/Plain"] = replace(hub.repositories["Owner/Tiny-GGUF"], tells_digests=False)
    assert pulled(models, "hf:Owner/Plain:Q4_0").read_bytes() == gguf


def test_a_url_is_pulled_listed_and_removed(models: RunDairllm, gguf: bytes, hub: Hub) -> None:
    hub.web["tiny.gguf"] = (gguf, {"ETag": '"one"'})
    url = f"{hub.url}/files/tiny.gguf"
    inspected = json.loads(models("inspect", url, "--json").stdout)
    assert (inspected["is_here"], inspected["stored"]["architecture"]) == (False, "llama")
    path = pulled(models, url)
    assert path.read_bytes() == gguf
    (listed,) = json.loads(models("list", "--json").stdout)["models"]
    assert (listed["name"], listed["path"]) == (url, str(path))
    assert models("remove", url).returncode == 0
    assert not path.exists()


def test_a_model_that_is_elsewhere_is_inspected_without_being_fetched(models: RunDairllm, hub: Hub) -> None:
    for model, kind in {"hf:Owner/Tiny-GGUF:Q8_0": "GGUF", "hf:Owner/Folder": "safetensors"}.items():
        inspected = json.loads(models("inspect", model, "--json").stdout)
        assert inspected["is_here"] is False
        assert kind.lower() in inspected["stored"]["kind"].lower() or kind == "safetensors"
        assert inspected["stored"]["licence"] == "apache-2.0"
        assert inspected["stored"]["parameters"] > 1000
    assert json.loads(models("list", "--json").stdout)["models"] == []


def test_inspect_tells_what_would_run(models: RunDairllm, gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf)
    result = models("inspect", str(path), "--context-length", "64")
    assert result.returncode == 0, result.stderr
    for words in ("architecture", "llama", "parameters", "stored as", "tokenizer", "units", "embedding", "memory for 64 tokens", "cache"):
        assert words in result.stdout, words
    told = json.loads(models("inspect", str(path), "--json", "--context-length", "64").stdout)
    shares = told["stored"]["by_type"].values()
    assert sum(share["parameters"] for share in shares) == told["stored"]["parameters"]
    running = told["running"]
    assert len(running["unit_bytes"]) == running["num_layers"] + 2
    assert running["sequence_tokens"] == 64
    twice = json.loads(models("inspect", str(path), "--json", "--context-length", "64", "--kv-cache", "f32").stdout)["running"]
    assert twice["cache_bytes"] == 2 * running["cache_bytes"]


def test_a_model_that_cannot_run_is_told_with_what_it_is(models: RunDairllm, gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf.replace(b"llama", b"whale"))
    result = models("inspect", str(path))
    assert result.returncode == 0, result.stderr
    assert "whale" in result.stdout
    assert "no: " in result.stdout


def test_files_of_ones_own_are_never_removed(models: RunDairllm, gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf)
    assert "deletes nothing else" in fails(models("remove", str(path)))
    assert path.is_file()


def test_the_list_shows_names_with_sizes_and_licences(models: RunDairllm) -> None:
    result = models("list")
    assert "no model was fetched" in result.stdout
    assert "smollm2:135m" in result.stdout
    assert "Apache-2.0" in result.stdout


def test_the_group_tells_its_commands_and_keeps_its_default(models: RunDairllm) -> None:
    told = models("--help")
    for command in ("served", "pull", "list", "inspect", "remove"):
        assert command in told.stdout
    assert "127.0.0.1:1" in fails(models("--coordinator", "127.0.0.1:1"))
    assert "127.0.0.1:1" in fails(models("served", "--coordinator", "127.0.0.1:1"))


def test_the_coordinator_serves_a_model_of_the_hub(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    for name in ("HF_ENDPOINT", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, environment[name])
    with Cluster("hf:Owner/Tiny-GGUF", shards(1), arguments=("--direct-weights",)) as cluster:
        assert cluster.state()["model"] == "hf:Owner/Tiny-GGUF"
        answers = [
            cluster.client.post("/v1/completions", json={"model": model, "prompt": "the", "max_tokens": 4, "temperature": 0})
            for model in ("hf:Owner/Tiny-GGUF", "Owner/Tiny-GGUF", "tiny-Q4_0.gguf")
        ]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert "Q4_0 is taken" in cluster.processes["coordinator"].output()


def test_a_coordinator_that_is_told_to_stop_while_it_fetches_stops(environment: dict[str, str], gguf: bytes, hub: Hub) -> None:
    hub.repositories["Owner/Big"] = Repository({"big.gguf": gguf + bytes(20_000_000)})
    hub.content_faults.extend([Fault(after_bytes=1_000_000), *(Fault(status=503) for _ in range(100))])
    command = [sys.executable, "-m", "dairllm.coordinator.main", "--model", "hf:Owner/Big", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen([*command, "--no-discovery"], stderr=subprocess.PIPE, env=environment, text=True) as process:
        while len(hub.asked_for("/content/")) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.wait(40) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
