"""The Python client against a real cluster."""

import socket
import threading
from collections.abc import Iterator

import pytest

from dairllm.client import Client, Message
from dairllm.mesh.errors import ContextExceeded, DairllmError, InvalidRequest, PeerUnreachable, UnknownModel
from dairllm.mesh.sampling import SamplingParams
from tests.instruments.clusters import Cluster, wait_for

GREEDY = SamplingParams(temperature=0)

pytestmark = pytest.mark.wheel


def test_text_is_continued_and_the_last_message_says_how_it_ended(client: Client) -> None:
    answer = client.generate("the tiny", max_tokens=12, sampling=GREEDY, ignore_eos=True)
    pieces = list(answer)
    assert answer.text == "".join(pieces)
    assert len(answer.tokens) == 12
    assert answer.finish is not None
    assert (answer.finish.reason, answer.finish.completion_tokens) == ("length", 12)
    assert answer.finish.prompt_tokens == len(client.tokenize("the tiny"))
    assert answer.finish.first_token_s > 0
    assert answer.finish.decode_tok_s > 0


def test_token_ids_give_the_same_answer_as_their_text(client: Client) -> None:
    by_text = client.generate("an and the", max_tokens=8, sampling=GREEDY, ignore_eos=True)
    by_ids = client.generate(client.tokenize("an and the"), max_tokens=8, sampling=GREEDY, ignore_eos=True)
    assert by_text.read() == by_ids.read()
    assert [token.token_id for token in by_text.tokens] == [token.token_id for token in by_ids.tokens]


def test_the_same_seed_gives_the_same_answer(client: Client) -> None:
    sampling = SamplingParams(temperature=1.0, seed=11)
    answers = [client.generate("in", max_tokens=16, sampling=sampling, ignore_eos=True) for _ in range(2)]
    other = client.generate("in", max_tokens=16, sampling=SamplingParams(temperature=1.0, seed=12), ignore_eos=True)
    texts = [answer.read() for answer in [*answers, other]]
    assert texts[0] == texts[1] != texts[2]


def test_log_probabilities_come_when_asked_for(client: Client) -> None:
    answer = client.generate("in", max_tokens=3, sampling=SamplingParams(temperature=0, logprobs=True, top_logprobs=4), ignore_eos=True)
    answer.read()
    for token in answer.tokens:
        assert token.logprob <= 0
        assert len(token.top) == 4
        assert token.top[0] == (token.token_id, token.logprob)


def test_a_conversation_is_answered(client: Client) -> None:
    answer = client.chat([Message("system", "be"), Message("user", "hi")], max_tokens=5, sampling=GREEDY)
    answer.read()
    assert answer.finish is not None
    assert answer.finish.prompt_tokens > len("be hi")


def test_detokenize_undoes_tokenize(client: Client) -> None:
    text = "the tiny llama: ä€😀"
    assert client.detokenize(client.tokenize(text)) == text


def test_models_and_cluster_say_what_is_served(client: Client, cluster: Cluster) -> None:
    (model,) = client.models()
    state = client.cluster()
    assert model.name == state.model == cluster.state()["model"]
    assert model.ready
    assert model.has_tokenizer
    assert model.has_chat_template
    assert [shard.name for shard in state.shards] == ["a", "b"]
    assert state.shards[0].end_unit == state.shards[1].first_unit


def test_watching_gives_the_state_at_once(client: Client) -> None:
    states = client.watch_cluster()
    assert next(states).num_layers == 3
    assert isinstance(states, Iterator)
    states.close()


def test_leaving_an_answer_ends_its_generation(client: Client, cluster: Cluster) -> None:
    with client.generate("in", max_tokens=200, sampling=GREEDY, ignore_eos=True) as answer:
        next(iter(answer))
    wait_for(lambda: cluster.state()["running_sequences"] == 0, "the generation ends", 10)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prompt": "in", "model": "nosuch"}, UnknownModel, "nosuch"),
        ({"prompt": ""}, InvalidRequest, "prompt"),
        ({"prompt": []}, InvalidRequest, "prompt"),
        ({"prompt": [4_000_000]}, InvalidRequest, "4000000"),
        ({"prompt": [1] * 300}, ContextExceeded, "256"),
        ({"prompt": "in", "stop": ["x"] * 17}, InvalidRequest, "16"),
    ],
)
def test_wrong_requests_raise_the_error_that_names_what_is_wrong(
    client: Client, arguments: dict[str, object], error: type[DairllmError], words: str
) -> None:
    with pytest.raises(error, match=words):
        client.generate(**arguments).read()  # type: ignore[arg-type]


def test_an_unknown_role_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="wizard"):
        client.chat([Message("wizard", "hi")]).read()


def test_nobody_at_the_address(unused_port: int) -> None:
    with Client(f"127.0.0.1:{unused_port}") as nobody, pytest.raises(PeerUnreachable, match=f"127.0.0.1:{unused_port}"):
        nobody.models()


def test_a_stranger_at_the_address() -> None:
    """Something that speaks another protocol: an error in time, not a hang."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_speak_smtp, args=(server,))
        answering.start()
        with Client(f"127.0.0.1:{server.getsockname()[1]}") as lost, pytest.raises(DairllmError):
            lost.models()
        server.shutdown(socket.SHUT_RDWR)
        answering.join(10)


def _speak_smtp(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
