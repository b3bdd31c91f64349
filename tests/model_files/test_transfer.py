"""Files over HTTP: against a server that cuts, lies, redirects and keeps silent."""

import hashlib
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.model_files.errors import ModelFetchError, ModelFileError, UnknownModelName
from dairllm.model_files.getting import disk_space, http_stream, transfer
from dairllm.model_files.getting.http_stream import HttpProblem, HttpStream
from dairllm.model_files.getting.locating import urls_of
from dairllm.model_files.getting.references import WebFile, parse_reference
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.getting.transfer import RemoteFile, download, locked
from dairllm.model_files.getting.verification import has_digest
from dairllm.model_files.getting.web import fetch_web_file, folder_of
from tests.instruments.hub import TOKEN, Fault, Hub, git_sha1, sha256

CONTENT = b"GGUF" + bytes(range(256)) * 12_000
ETAG = {"ETag": '"one"'}


@pytest.fixture(scope="module")
def running() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Nobody waits longer than need be."""
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(http_stream, "SILENCE_S", 0.5)
    running.web = {"model.gguf": (CONTENT, ETAG)}
    running.content_faults.clear()
    running.asked.clear()
    return running


def remote(hub: Hub, path: str = "model.gguf", **known: object) -> RemoteFile:
    return RemoteFile(path, f"{hub.url}/files/{path}", **known)  # type: ignore[arg-type]


def known(hub: Hub) -> RemoteFile:
    return remote(hub, size_bytes=len(CONTENT), sha256=sha256(CONTENT))


def fetched(file: RemoteFile, folder: Path) -> bytes:
    target = folder / "model.gguf"
    download(file, target, lambda done_bytes: None)
    assert {path.name for path in folder.iterdir()} == {"model.gguf"}
    return target.read_bytes()


def test_a_file_is_fetched_and_its_progress_told(hub: Hub, tmp_path: Path) -> None:
    told: list[int] = []
    download(known(hub), tmp_path / "x", told.append)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, len(CONTENT))


def test_a_cut_connection_goes_on_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.content_faults.extend(Fault(after_bytes=1_000_000) for _ in range(2))
    assert fetched(known(hub), tmp_path) == CONTENT
    assert [one.range for one in hub.asked] == ["", "bytes=1000000-", "bytes=2000000-"]


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 2_000_000), max_size=2), ignored=st.sampled_from([(), (1,), (0, 2)]))
def test_any_cuts_give_the_same_bytes(
    running: Hub, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ignored: tuple[int, ...]
) -> None:
    running.web = {"model.gguf": (CONTENT, ETAG)}
    running.content_faults.clear()
    running.content_faults.extend(Fault(after_bytes=cut, ignores_ranges=index in ignored) for index, cut in enumerate(cuts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
        for file in (known(running), remote(running)):
            assert fetched(file, tmp_path_factory.mktemp("target")) == CONTENT


def test_a_later_process_goes_on_where_an_earlier_one_ended(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.incomplete").write_bytes(CONTENT[:1_234_567])
    assert fetched(known(hub), tmp_path) == CONTENT
    assert [one.range for one in hub.asked] == ["bytes=1234567-"]


def test_a_file_of_which_all_is_there_needs_no_request(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.incomplete").write_bytes(CONTENT)
    assert fetched(known(hub), tmp_path) == CONTENT
    assert hub.asked == []


def test_a_beginning_that_is_too_long_or_of_another_file_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.incomplete").write_bytes(CONTENT + b"more")
    assert fetched(known(hub), tmp_path) == CONTENT
    (tmp_path / "model.gguf").unlink()
    (tmp_path / "model.gguf.incomplete").write_bytes(b"x" * 1000)
    with pytest.raises(ModelFetchError, match="try again"):
        fetched(known(hub), tmp_path)
    assert fetched(known(hub), tmp_path) == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    hub.content_faults.extend([Fault(after_bytes=1_000_000), *(Fault(status=503) for _ in range(6))])
    with pytest.raises(ModelFetchError, match="503"):
        fetched(remote(hub), tmp_path)
    hub.content_faults.clear()
    other = CONTENT[::-1].replace(CONTENT[-4:][::-1], b"GGUF", 1)
    hub.web["model.gguf"] = (b"GGUF" + other[4:], {"ETag": '"two"'})
    assert fetched(remote(hub), tmp_path) == b"GGUF" + other[4:]


def test_a_file_that_cannot_be_told_to_be_the_same_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    hub.web["model.gguf"] = (CONTENT, {})
    (tmp_path / "model.gguf.incomplete").write_bytes(CONTENT[:1000])
    assert fetched(remote(hub), tmp_path) == CONTENT
    assert [one.range for one in hub.asked] == [""]


def test_busy_servers_are_given_the_time_that_they_ask_for(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer, "_pause", lambda seconds, report: slept.append(seconds))
    hub.content_faults.extend([Fault(status=429, headers={"Retry-After": "7"}), Fault(status=503)])
    assert fetched(known(hub), tmp_path) == CONTENT
    assert slept[0] == 7
    assert slept[1] < 1


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([Fault(status=404)], "answers 404"),
        ([Fault(status=403)], "answers 403"),
        ([Fault(status=500)] * 3, "answers 500"),
        ([Fault(silent_s=1)] * 3, "sends nothing for"),
        ([Fault(after_bytes=0)] * 3, "before the end"),
        ([Fault(content=CONTENT[:-1])], f"has {len(CONTENT) - 1} bytes where it is fetched from; expected {len(CONTENT)}"),
        ([Fault(content=CONTENT + b"x")], f"has {len(CONTENT) + 1} bytes"),
        ([Fault(content=CONTENT[:-1] + b"x")], "was fetched with the digest"),
        ([Fault(length=len(CONTENT) + 5, after_bytes=len(CONTENT))], "bytes where it is fetched from"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_wrong_is_kept(hub: Hub, tmp_path: Path, faults: list[Fault], told: str) -> None:
    hub.content_faults.extend(faults)
    with pytest.raises(ModelFetchError, match=told) as caught:
        fetched(known(hub), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()
    hub.content_faults.clear()
    assert fetched(known(hub), tmp_path) == CONTENT


def test_a_file_of_git_is_compared_with_its_own_digest(hub: Hub, tmp_path: Path) -> None:
    file = remote(hub, size_bytes=len(CONTENT), git_sha1=git_sha1(CONTENT))
    assert fetched(file, tmp_path) == CONTENT
    (tmp_path / "model.gguf").unlink()
    hub.content_faults.append(Fault(content=CONTENT[:-1] + b"x"))
    with pytest.raises(ModelFetchError, match="expected " + git_sha1(CONTENT)):
        fetched(file, tmp_path)


def test_redirects_lead_nowhere_but_where_files_may_lie(hub: Hub) -> None:
    for location in ("file:///etc/passwd", "ftp://example.com/x", "http://example.com/x", "gopher://x/"):
        hub.web["away"] = (b"", {"Location": location})
        with pytest.raises(HttpProblem, match=r"(?i)sends on to|redirect"):
            HttpStream(f"{hub.url}/files/away", {})
    hub.web["round"] = (b"", {"Location": f"{hub.url}/files/round"})
    with pytest.raises(HttpProblem):
        HttpStream(f"{hub.url}/files/round", {})
    redirects = http_stream._Redirects()
    request = urllib.request.Request("https://example.com/x")
    for near in ("https://192.168.0.1/x", "https://localhost/x", "http://example.org/x"):
        with pytest.raises(HttpProblem, match="sends on to"):
            redirects.redirect_request(request, None, 302, "Found", {}, near)
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://example.org/x") is not None


def test_a_token_goes_to_its_own_host_alone(hub: Hub) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    hub.web["same"] = (b"", {"Location": f"{hub.url}/files/model.gguf"})
    hub.web["other"] = (b"", {"Location": f"{hub.content_url}/files/model.gguf"})
    for path in ("same", "other"):
        with HttpStream(f"{hub.url}/files/{path}", token) as stream:
            assert stream.read(4) == b"GGUF"
    assert [(one.path, bool(one.authorization)) for one in hub.asked] == [
        *(("/files/same", True), ("/files/model.gguf", True)),
        *(("/files/other", True), ("/files/model.gguf", False)),
    ]


def test_what_is_no_model_is_told_and_not_kept(hub: Hub, cache_home: Path) -> None:
    hub.web["page.gguf"] = (b"<!DOCTYPE html><html>" + b" " * 9000, {})
    hub.web["pointer.gguf"] = (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", {})
    for path, told in {"page.gguf": "page.gguf is a web page", "pointer.gguf": "pointer of Git LFS"}.items():
        with pytest.raises(UnknownModelName, match=told):
            resolve_model(f"{hub.url}/files/{path}")
    assert not [path for path in cache_home.rglob("*.gguf*") if path.is_file()]


def test_a_file_of_the_web_is_fetched_once(hub: Hub) -> None:
    url = f"{hub.url}/files/model.gguf"
    path = resolve_model(url)
    assert path.read_bytes() == CONTENT
    assert path.name == "model.gguf"
    hub.asked.clear()
    assert resolve_model(url) == path
    assert hub.asked == []


def test_a_digest_behind_the_url_is_compared(hub: Hub) -> None:
    url = f"{hub.url}/files/model.gguf"
    assert resolve_model(f"{url}#sha256={sha256(CONTENT)}").read_bytes() == CONTENT
    wrong = parse_reference(f"{hub.url}/files/model.gguf?again#sha256={'0' * 64}")
    assert isinstance(wrong, WebFile)
    with pytest.raises(ModelFetchError, match="expected 0000"):
        fetch_web_file(wrong)


def test_all_parts_of_a_split_model_are_fetched(hub: Hub) -> None:
    for number in (1, 2):
        hub.web[f"x-0000{number}-of-00002.gguf"] = (CONTENT + bytes([number]), ETAG)
    path = resolve_model(f"{hub.url}/files/x-00002-of-00002.gguf")
    first = path.with_name("x-00001-of-00002.gguf")
    assert (first.read_bytes()[-1], path.read_bytes()[-1]) == (1, 2)
    assert resolve_model(f"{hub.url}/files/x-00001-of-00002.gguf") == first


def test_a_server_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(ModelFetchError, match=r"the connection to 127.0.0.1 fails"):
        resolve_model("http://127.0.0.1:1/x.gguf")
    with pytest.raises(ModelFetchError, match="answers 404"):
        resolve_model(f"{hub.url}/files/none.gguf")


def test_the_disk_is_looked_at_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "_LEFT_FREE_BYTES", 1 << 60)
    with pytest.raises(ModelFetchError, match=r"model.gguf needs 3.07 MB more on the disk of .* are free; .*XDG_CACHE_HOME"):
        resolve_model(f"{hub.url}/files/model.gguf")
    assert len(hub.asked) == 1


def test_several_at_once_fetch_once(hub: Hub) -> None:
    url = f"{hub.url}/files/model.gguf"
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(resolve_model(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths == [folder_of(WebFile(url)) / "model.gguf"] * 4
    assert len([one for one in hub.asked if not one.range]) == 1


def test_a_folder_that_cannot_be_written_to_is_named(hub: Hub, cache_home: Path) -> None:
    (cache_home / "dairllm").write_text("a file where the folder should be")
    with pytest.raises(ModelFileError, match="cannot be stored"):
        resolve_model(f"{hub.url}/files/model.gguf")


def test_a_file_is_read_for_its_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    digest = sha256(CONTENT)
    monkeypatch.setattr("dairllm.model_files.file_identity.RACY_NS", 0)
    assert has_digest(path, len(CONTENT), digest)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert has_digest(path, len(CONTENT), digest)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert not has_digest(path, len(CONTENT), digest)
    assert not has_digest(path, len(CONTENT) + 1, digest)
    assert not has_digest(tmp_path / "none", 1, digest)


def test_others_are_told_where_a_model_of_a_cache_is_from(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--Owner--Name" / "snapshots" / ("0123456789" * 4)
    expected = f"{constants.ENDPOINT}/Owner/Name/resolve/{'0123456789' * 4}/a/x.gguf"
    assert urls_of("hf:Owner/Name", [folder / "a" / "x.gguf"]) == (expected,)
    assert urls_of(str(folder), [folder / "a" / "x.gguf"]) == (expected,)
    assert urls_of("x.gguf", [tmp_path / "x.gguf"]) == ()
    assert urls_of("x.gguf", [folder / "x.gguf", Path("/x.gguf")]) == ()
    url = f"{hub.url}/files/x-00001-of-00002.gguf"
    names = ["x-00002-of-00002.gguf", "x-00001-of-00002.gguf"]
    assert urls_of(url, [Path("/cache", name) for name in names]) == tuple(f"{hub.url}/files/{name}" for name in names)


def test_whoever_fetches_may_take_any_time_while_it_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LOCK_DEADLINE_S", 0.3)
    monkeypatch.setattr(transfer, "POLL_INTERVAL_S", 0.05)
    told: list[int] = []

    def fetched_bytes() -> int:
        """Grows ten times, and then no more."""
        told.append(min(len(told), 10))
        return told[-1]

    with (
        locked(tmp_path / "lock", "x"),
        pytest.raises(ModelFetchError, match="another process"),
        locked(tmp_path / "lock", "x", fetched_bytes),
    ):
        pass
    assert told[-1] == 10
