"""A chat template that would compute for ever holds up its own request for two seconds, and nothing else."""

import contextlib
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests import tiny_gguf
from tests.instruments.clusters import Cluster, wait_for

TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'for ever' %}{{ ('a' * 9000000).rfind('a' * 4000000 + 'b' + 'a' * 4000000) }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "CHAT_TEMPLATE", TEMPLATE)
        return tiny_gguf.write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", with_tokenizer=True)


def chat(cluster: Cluster, content: str) -> httpx.Response:
    return httpx.post(
        f"{cluster.http}/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}, timeout=60, trust_env=False
    )


def renderers(cluster: Cluster) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(cluster.processes["coordinator"].pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just been killed
            if "template_child" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_others_go_on_meanwhile(hostile_model: Path) -> None:
    with Cluster(hostile_model, (), wait=False) as cluster:
        answers: list[httpx.Response] = []
        chats = [threading.Thread(target=lambda: answers.append(chat(cluster, "for ever"))) for _ in range(4)]
        for one in chats:
            one.start()
        longest_s = 0.0
        while any(one.is_alive() for one in chats):
            longest_s = max(longest_s, cluster.client.get("/healthz").elapsed.total_seconds())
        assert longest_s < 1.5
        assert [answer.status_code for answer in answers] == [400] * 4
        assert all("takes longer than 2 s" in answer.text for answer in answers)
        assert chat(cluster, "Hello").status_code == 503  # it was rendered, and no shard is there


def ask_for_ever(cluster: Cluster) -> None:
    with contextlib.suppress(httpx.HTTPError):
        chat(cluster, "for ever")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_renderer_is_left(hostile_model: Path, number: signal.Signals) -> None:
    with Cluster(hostile_model, (), wait=False) as cluster:
        (idle,) = renderers(cluster)
        waiting = threading.Thread(target=ask_for_ever, args=(cluster,))
        before_s = idle.cpu_times().user
        waiting.start()
        wait_for(lambda: not idle.is_running() or idle.cpu_times().user > before_s + 0.1, "a chat is being rendered")
        left = renderers(cluster)
        cluster.processes["coordinator"].send(number)
        cluster.processes["coordinator"].wait(20)
        gone, alive = psutil.wait_procs(left, 20)
        assert (set(gone), alive) == (set(left), [])
        waiting.join()
