"""What the value of --model means."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.errors import CorruptModelFile, UnknownModelName
from dairllm.model_files.getting.known_models import Wheel, find_known_model, known_models, read_known_models
from dairllm.model_files.getting.references import HubModel, KnownName, LocalPath, WebFile, parse_reference
from dairllm.model_files.getting.resolve import resolve_model

SHA256 = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("smollm2:135m", KnownName("smollm2:135m")),
        ("", KnownName("")),
        ("./smollm2:135m", LocalPath(Path("smollm2:135m"))),
        ("/models/x", LocalPath(Path("/models/x"))),
        ("not/there/model.gguf", LocalPath(Path("not/there/model.gguf"))),
        ("a/b/c", LocalPath(Path("a/b/c"))),
        ("hf:Owner/Name-GGUF", HubModel("Owner/Name-GGUF")),
        ("HF:o/n:Q4_K_M", HubModel("o/n", None, "Q4_K_M")),
        ("hf://o/n@v1.0:sub/x-00001-of-00002.gguf", HubModel("o/n", "v1.0", "sub/x-00001-of-00002.gguf")),
        ("hf.co/o/n:Q8_0", HubModel("o/n", None, "Q8_0")),
        ("https://huggingface.co/o/n", HubModel("o/n")),
        ("https://huggingface.co/o/n/tree/main", HubModel("o/n")),
        ("https://huggingface.co/o/n/blob/main/a%20b.gguf?download=true", HubModel("o/n", None, "a b.gguf")),
        ("https://huggingface.co/o/n/resolve/abc123/sub/b.gguf", HubModel("o/n", "abc123", "sub/b.gguf")),
        ("https://example.com/m/x.gguf?key=1", WebFile("https://example.com/m/x.gguf?key=1")),
        (f"https://example.com/x.gguf#sha256={SHA256}", WebFile("https://example.com/x.gguf", SHA256)),
        ("http://192.168.1.5:8000/x.gguf", WebFile("http://192.168.1.5:8000/x.gguf")),
    ],
)
def test_what_is_meant(written: str, meant: object) -> None:
    assert parse_reference(written) == meant


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("Owner/Name", "write hf:Owner/Name"),
        ("Owner/Name:Q4_K_M", "write hf:Owner/Name:Q4_K_M"),
        ("hf:Name", "expected hf:OWNER/NAME"),
        ("hf:a/b/c", "expected hf:OWNER/NAME"),
        ("hf:../b", "expected hf:OWNER/NAME"),
        ("hf:a/..", "expected hf:OWNER/NAME"),
        ("hf:a--b/c", "expected hf:OWNER/NAME"),
        ("hf:a/b:", "expected one such as Q4_K_M"),
        ("hf:a/b:../../x", "expected one such as Q4_K_M"),
        ("hf:a/b:/etc/passwd", "expected one such as Q4_K_M"),
        ("hf:a/b@../x:y", "expected a branch"),
        ("https://huggingface.co/datasets/o/n", "no model of the hub"),
        ("https://example.com/", "names no file"),
        ("https://", "no URL"),
        ("https://[::1/x.gguf", "no URL"),
        ("https://user:secret@example.com/x.gguf", "user name or a password"),
        ("http://example.com/x.gguf", "unprotected"),
        ("https://example.com/x.gguf#sha256=12", "64 hexadecimal digits"),
        ("a\0b", "NUL"),
    ],
)
def test_what_nothing_can_be_meant_by_is_told_with_what_to_write(written: str, told: str) -> None:
    with pytest.raises(UnknownModelName, match=told) as caught:
        parse_reference(written)
    assert "secret" not in str(caught.value)


@given(st.text() | st.text(alphabet="hf:/@.-aZ0 htps#?[]%", max_size=40))
def test_any_text_means_something_or_is_refused_in_one_sentence(written: str) -> None:
    with contextlib.suppress(UnknownModelName):
        meant = parse_reference(written)
        if isinstance(meant, HubModel):
            assert ".." not in meant.repository
            assert parse_reference(str(meant)) == meant


def test_what_exists_here_is_meant_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Owner").mkdir()
    (tmp_path / "Owner" / "Name").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert parse_reference("Owner/Name") == LocalPath(Path("Owner/Name"))


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "m.gguf", "./m.gguf", "link"):
        assert resolve_model(name) == tmp_path / name, "links stay"
    assert resolve_model(str(tmp_path)) == tmp_path
    for name, expected in {
        "none.gguf": "No such file",
        "./smollm2:135m": "No such file",
        "/dev/null": "not a regular file",
        "~nobody-of-that-name/m.gguf": "No such file",
        "x" * 5000 + ".gguf": "cannot be read",
    }.items():
        with pytest.raises(UnknownModelName, match=expected):
            resolve_model(name)


def test_names() -> None:
    assert find_known_model("SmolLM2:135M") is known_models()["smollm2:135m"]
    with pytest.raises(UnknownModelName, match=r"smollm2:135m.*; did you mean 'smollm2"):
        resolve_model("smollm2:135")
    with pytest.raises(UnknownModelName, match=r"'' is neither"):
        resolve_model("")
    with pytest.raises(UnknownModelName, match=r"hf:OWNER/NAME or one of .*smollm2:135m[^;]*$"):
        resolve_model("quite-another-one")


def test_the_list_of_names_is_sound() -> None:
    for name, model in known_models().items():
        assert model.name == name
        assert model.licence
        assert isinstance(model.source, Wheel) or model.source.choice


def test_a_model_of_ollama_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "mine" / "1b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert resolve_model("mine:1b") == manifest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"models": {"x": {"size_bytes": 1, "licence": "MIT"}}}', "wheel_size_bytes"),
        ('{"models": {"x": {"size_bytes": 0, "licence": "MIT", "hub": "hf:o/n:Q8_0"}}}', "size_bytes of x is 0"),
        ('{"models": {"x": {"size_bytes": 1, "hub": "hf:o/n:Q8_0"}}}', "licence"),
        ('{"models": {"x": {"size_bytes": 1, "licence": "MIT", "hub": "/etc/passwd"}}}', "expected hf:OWNER/NAME:TYPE"),
        ('{"models": {"X": {"size_bytes": 1, "licence": "MIT", "hub": "hf:o/n:Q8_0"}}}', "lower-case"),
        ('{"models": {"x": {"size_bytes": 1, "licence": "MIT", "hub": "hf:o/n:Q8_0", "url": "y"}}}', "unknown field 'url'"),
    ],
)
def test_a_list_that_is_wrong_is_told(text: str, told: str) -> None:
    with pytest.raises(CorruptModelFile, match=told):
        read_known_models(text)
