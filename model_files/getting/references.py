"""What the value of `--model` means: a path, a model of a hub, a file of the web, or a well-known name. Pure, but for looking whether a
path exists."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dairllm.model_files.errors import UnknownModelName

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
MODEL_ENDINGS = frozenset({".gguf", ".safetensors", ".m", ".bin", ".json"})
_SHOWN_CHARACTERS = 200
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
"""As https://huggingface.co/docs/huggingface_hub/package_reference/utilities (validate_repo_id) has it, with an owner."""
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LocalPath:
    path: Path


@dataclass(frozen=True, slots=True)
class KnownName:
    name: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """repository: OWNER/NAME. revision: a branch, a tag or a commit; None for the main one. choice: a file or a type; None for the
    default."""

    repository: str
    revision: str | None = None
    choice: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repository}{revision}{f':{self.choice}' if self.choice else ''}"


@dataclass(frozen=True, slots=True)
class WebFile:
    """sha256: of the file, in hexadecimal digits, if the user gave it."""

    url: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]


Reference = LocalPath | KnownName | HubModel | WebFile


def parse_reference(written: str) -> Reference:
    """Raises UnknownModelName, with what to write instead, for what can be none of them."""
    if "\0" in written:
        raise UnknownModelName(f"{shown(written)} contains a NUL character; expected a path or a name")
    scheme, colon, rest = written.partition(":")
    if colon and scheme.lower() == "hf":
        return _hub_model(rest.removeprefix("//"), written)
    if colon and scheme.lower() in ("http", "https") and rest.startswith("//"):
        return _web_reference(written)
    path = Path(os.path.expanduser(written))
    if written and (_exists(path) or _looks_like_a_path(written)):
        return LocalPath(path)
    host, _, behind = written.partition("/")
    if host.lower() in HUB_HOSTS:
        return _hub_page(behind, written)
    if _REPOSITORY.fullmatch(written.partition(":")[0].partition("@")[0]):
        raise UnknownModelName(
            f"{shown(written)} is no file here; for the model of that name on the hub write hf:{written[:_SHOWN_CHARACTERS]}"
        )
    if os.sep in written:
        return LocalPath(path)
    return KnownName(written)


def shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long to be a file's
        return False


def _looks_like_a_path(written: str) -> bool:
    return written.startswith(("/", "./", "../", "~")) or Path(written).suffix.lower() in MODEL_ENDINGS


def _hub_model(behind: str, written: str) -> HubModel:
    """behind: OWNER/NAME[@REVISION][:FILE or type]."""
    name, colon, choice = behind.partition(":")
    repository, at, revision = name.partition("@")
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UnknownModelName(f"{shown(written)} names the model {shown(repository)} of the hub; expected hf:OWNER/NAME[:FILE or type]")
    if at and not _is_revision(revision):
        raise UnknownModelName(f"{shown(written)} names the revision {shown(revision)}; expected a branch, a tag or a commit")
    if colon and not _is_file_name(choice):
        raise UnknownModelName(f"{shown(written)} names the file or type {shown(choice)}; expected one such as Q4_K_M")
    return HubModel(repository, revision or None, choice or None)


def _is_revision(text: str) -> bool:
    return bool(_REVISION.fullmatch(text)) and ".." not in text


def _is_file_name(text: str) -> bool:
    """Of a file in a repository, or a type."""
    return 0 < len(text) <= 512 and text.isprintable() and not text.startswith("/") and ".." not in text.split("/") and "\\" not in text


def _web_reference(written: str) -> HubModel | WebFile:
    try:
        parts = urlsplit(written)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UnknownModelName(f"{shown(written)} is no URL: {error}") from error
    if host in HUB_HOSTS:
        return _hub_page(unquote(parts.path).lstrip("/"), written)
    if not host or any(character.isspace() or not character.isprintable() for character in written):
        raise UnknownModelName(f"{shown(written)} is no URL; expected https://HOST/PATH of a model file")
    if parts.username or parts.password:
        raise UnknownModelName("the URL of the model has a user name or a password, which would end up in logs; expected one without")
    if parts.scheme.lower() == "http" and not is_near(host):
        raise UnknownModelName(f"{shown(written)} would come over an unprotected connection; expected https://")
    sha256 = _SHA256.fullmatch(parts.fragment.lower())
    if parts.fragment and not sha256:
        raise UnknownModelName(
            f"{shown(written)} ends with #{parts.fragment[:80]}; expected #sha256= and 64 hexadecimal digits, or nothing"
        )
    file = WebFile(parts._replace(fragment="").geturl(), sha256[1] if sha256 else None)
    if not _is_file_name(file.file_name):
        raise UnknownModelName(f"{shown(written)} names no file; expected the URL of a model file, such as https://HOST/model.gguf")
    return file


def _hub_page(path: str, written: str) -> HubModel:
    """path: of a page of the hub as browsers show it, OWNER/NAME[:type], OWNER/NAME/tree/REVISION or
    OWNER/NAME/(blob|resolve)/REVISION/FILE."""
    parts = path.rstrip("/").split("/", 4)
    if len(parts) <= 2:
        return _hub_model("/".join(parts), written)
    if parts[2] not in ("tree", "blob", "resolve", "raw") or len(parts) < 4:
        raise UnknownModelName(f"{shown(written)} is no model of the hub; expected hf:OWNER/NAME[:FILE or type]")
    revision = "" if parts[3] == "main" else f"@{parts[3]}"
    return _hub_model("/".join(parts[:2]) + revision + (f":{parts[4]}" if len(parts) > 4 else ""), written)


def is_near(host: str) -> bool:
    """Whether it is this machine, or an address of a private network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False
