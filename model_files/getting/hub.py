"""Models of the Hugging Face hub, or of a server that speaks its protocol (HF_ENDPOINT), in the cache that all programs of the hub share.

huggingface_hub lists, authenticates (HF_TOKEN), knows the cache (HF_HOME, HF_HUB_CACHE) and offline mode (HF_HUB_OFFLINE), and names files
in the cache. The bytes come through `transfer`: the library (2.4) begins a download anew when its process ended meanwhile, and compares no
digests. Imported only where a model of the hub is meant: the library takes a while.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo

from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.getting.choosing import ChosenFiles, HubFile, choose
from dairllm.model_files.getting.disk_space import require_space
from dairllm.model_files.getting.http_stream import WORTH_ASKING_AGAIN, retry_after_s
from dairllm.model_files.getting.references import HubModel
from dairllm.model_files.getting.transfer import RemoteFile, download, locked
from dairllm.model_files.progress import ProgressCallback

MAIN = "main"
_ANSWER_S = 15.0
_TRIES = 4
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_IN_CACHE = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
_CONNECTION_ERRORS: tuple[type[BaseException], ...] = (OSError, HfHubHTTPError.__bases__[0])
"""What the library's HTTP client raises: its base class, whichever client this version uses."""

Answer = TypeVar("Answer")


class HubProblem(ModelFetchError):
    """The hub could not be asked, or refused: what is in the cache may do."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository. commit: of which. licence: None if it is not known. problem: why only the cache was looked at, '' if the
    hub itself answered."""

    repository: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str | None = None
    problem: str = ""

    @property
    def folder(self) -> Path:
        """Where its files lie (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
        return repository_folder(self.repository) / "snapshots" / self.commit


@dataclass(frozen=True, slots=True)
class HubChoice:
    """What is meant by a reference: some files of a listing."""

    listing: Listing
    choice: ChosenFiles

    @property
    def name(self) -> str:
        return f"hf:{self.listing.repository}:{self.choice.label}"

    @property
    def entry(self) -> Path:
        """What is opened: a file, or the folder."""
        return self.listing.folder / self.choice.entry

    @property
    def missing(self) -> list[HubFile]:
        """What is not on this machine."""
        return [file for file in self.choice.files if not (self.listing.folder / file.name).is_file()]

    @property
    def notes(self) -> list[str]:
        """What a user should be told, in sentences."""
        problem = self.listing.problem
        said = f"{problem}; what is in {cache()} is used" if problem and not constants.HF_HUB_OFFLINE else ""
        return [note for note in (said, self.choice.note) if note]


def find(model: HubModel) -> HubChoice:
    """Ask the hub, or where it does not answer the cache, what is meant. Raises UnknownModelName, ModelFetchError."""
    if constants.HF_HUB_OFFLINE:
        cached = _listing_of_cache(model, "HF_HUB_OFFLINE is set")
        if cached is None:
            raise HubProblem(f"HF_HUB_OFFLINE is set, and {model} is not in {cache()}; unset it, or fetch the model before")
        return _chosen(cached, model.choice)
    try:
        return _chosen(_ask_for_listing(model), model.choice)
    except HubProblem as problem:
        cached = _listing_of_cache(model, str(problem))
        if cached is None:
            raise
    return _chosen(cached, model.choice)


def _chosen(listing: Listing, wanted: str | None) -> HubChoice:
    try:
        return HubChoice(listing, choose(listing.repository, listing.files, wanted))
    except UnknownModelName as error:
        if not listing.problem:
            raise
        raise UnknownModelName(f"{error} in {cache()}, and the hub cannot be asked: {listing.problem}") from error


def fetch(found: HubChoice, progress: ProgressCallback | None = None) -> Path:
    """What to open, once all of the model is in the cache. Raises ModelFetchError."""
    missing, listing = found.missing, found.listing
    if not missing:
        return found.entry
    if listing.problem:
        raise ModelFetchError(f"{found.name} lacks {missing[0].name} in {cache()}, and the hub cannot be asked: {listing.problem}")
    lacking_bytes = sum((file.size_bytes or 0) - _bytes_here(listing.repository, file) for file in missing)
    require_space(found.name, lacking_bytes, cache(), "let HF_HOME name a folder on another disk")
    _require_access(listing, missing[0])
    counting = _Counting(found, progress)
    for file in found.choice.files:
        _fetch_file(listing, file, counting)
    # Once more under the name of the branch, which the library keeps for those who ask for it offline.
    _asked(listing.repository, lambda: hf_hub_download(listing.repository, found.choice.files[0].name, revision=listing.revision))
    return found.entry


def _require_access(listing: Listing, file: HubFile) -> None:
    """Some repositories are listed to everybody, and given to those who accepted a licence. Raises HubProblem."""
    url = hf_hub_url(listing.repository, file.name, revision=listing.commit)
    _asked(listing.repository, lambda: get_hf_file_metadata(url, timeout=_ANSWER_S))


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def endpoint() -> str:
    return str(constants.ENDPOINT)


def repository_folder(repository: str) -> Path:
    return cache() / f"models--{repository.replace('/', '--')}"


def remote_file(listing: Listing, file: HubFile) -> RemoteFile:
    url = hf_hub_url(listing.repository, file.name, revision=listing.commit)
    return RemoteFile(file.name, url, file.size_bytes, file.sha256, file.git_sha1, token_for(url))


def token_for(url: str) -> dict[str, str]:
    """Headers with the user's token, if there is one and the URL is of the hub itself."""
    if not url.startswith(f"{constants.ENDPOINT}/"):
        return {}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def urls_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """Where these files can be fetched, if all of them lie in the cache; nothing otherwise."""
    found = []
    for path in paths:
        match = _IN_CACHE.fullmatch(path.relative_to(cache()).as_posix()) if path.is_relative_to(cache()) else None
        if match is None:
            return ()
        found.append(hf_hub_url(f"{match['owner']}/{match['name']}", match["file"], revision=match["commit"]))
    return tuple(found)


def _fetch_file(listing: Listing, file: HubFile, counting: "_Counting") -> None:
    """Into the cache, where the hub's own library gives it its name."""
    blob = _blob(listing.repository, file)
    if blob is not None and not blob.is_file():
        # The library's own lock, so that it keeps out of the way, too.
        lock = cache() / ".locks" / repository_folder(listing.repository).name / f"{blob.name}.lock"
        with locked(lock, file.name, lambda: _bytes_here(listing.repository, file)):
            if not blob.is_file():
                download(remote_file(listing, file), blob, counting.report)
    _asked(listing.repository, lambda: hf_hub_download(listing.repository, file.name, revision=listing.commit))
    counting.end_file(file.size_bytes or 0)


class _Counting:
    """Turns the bytes of one file into those of all."""

    def __init__(self, found: HubChoice, progress: ProgressCallback | None) -> None:
        self._description = f"Downloading {found.name}"
        self._total_bytes = found.choice.size_bytes
        self._before_bytes = 0
        self._progress = progress

    def report(self, done_bytes: int) -> None:
        if self._progress is not None:
            done_bytes += self._before_bytes
            self._progress(self._description, done_bytes, max(self._total_bytes, done_bytes))

    def end_file(self, size_bytes: int) -> None:
        self._before_bytes += size_bytes
        self.report(0)


def _blob(repository: str, file: HubFile) -> Path | None:
    """Where the cache keeps the content; None where only the library can know, since the hub gave no digest or no size."""
    digest = file.sha256 or file.git_sha1
    return repository_folder(repository) / "blobs" / digest if digest and file.size_bytes is not None else None


def _bytes_here(repository: str, file: HubFile) -> int:
    """Of a file that is not complete, or has no name in this revision yet."""
    blob = _blob(repository, file)
    paths = () if blob is None else (blob, blob.with_name(f"{blob.name}.incomplete"))
    return max((min(path.stat().st_size, file.size_bytes or 0) for path in paths if path.is_file()), default=0)


def _ask_for_listing(model: HubModel) -> Listing:
    info = _asked(
        model.repository,
        lambda: HfApi().model_info(model.repository, revision=model.revision, files_metadata=True, timeout=_ANSWER_S),
    )
    files = tuple(
        HubFile(
            name=sibling.rfilename,
            size_bytes=sibling.lfs.size if sibling.lfs else sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_sha1=None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or ()
    )
    # A repository that was renamed answers under its new name.
    return Listing(info.id or model.repository, model.revision or MAIN, info.sha or MAIN, files, _licence_of(info))


def _licence_of(info: ModelInfo) -> str | None:
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return tags[0] if tags else None


def _listing_of_cache(model: HubModel, problem: str) -> Listing | None:
    """What of the revision is on this machine; None if that is nothing."""
    folder = repository_folder(model.repository)
    revision = model.revision or MAIN
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    listing = Listing(model.repository, revision, commit, (), problem=problem)
    files = tuple(_files_under(listing.folder))
    return Listing(model.repository, revision, commit, files, problem=problem) if files else None


def _files_under(folder: Path) -> Iterator[HubFile]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield HubFile(path.relative_to(folder).as_posix(), path.stat().st_size)


def _asked(repository: str, ask: Callable[[], Answer]) -> Answer:
    """The library's answer; asks again where that may help. Raises HubProblem."""
    for attempt in range(_TRIES):
        try:
            return ask()
        except OfflineModeIsEnabled as error:
            raise HubProblem("HF_HUB_OFFLINE is set; unset it") from error
        except HfHubHTTPError as error:
            pause_s = _pause_s(error, attempt)
            if pause_s is None or attempt + 1 == _TRIES:
                raise HubProblem(_describe_refusal(repository, error)) from error
        except _CONNECTION_ERRORS as error:
            pause_s = _FIRST_PAUSE_S * 2**attempt
            if attempt + 1 == _TRIES:
                cause = str(error.__cause__ or error).splitlines()
                raise HubProblem(f"{constants.ENDPOINT} does not answer ({cause[0] if cause else type(error).__name__})") from error
        time.sleep(pause_s)
    raise AssertionError("the last try answers or raises")


def _pause_s(error: HfHubHTTPError, attempt: int) -> float | None:
    """How long to wait before asking again; None if that is of no use."""
    if error.response.status_code not in WORTH_ASKING_AGAIN:
        return None
    least_s = retry_after_s(str(error.response.headers.get("Retry-After", "")))
    return min(max(least_s, _FIRST_PAUSE_S * 2.0**attempt), _LONGEST_PAUSE_S)


def _describe_refusal(repository: str, error: HfHubHTTPError) -> str:
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return f"{repository} is gated: accept its licence at {page}, and set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return f"{page} does not exist, or is private: check the name, or set HF_TOKEN to a token of an account that may see it"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such revision; expected a branch, a tag or a commit of {page}"
    status = error.response.status_code
    if status in (401, 403):
        return f"{page} answers {status}: the token in HF_TOKEN is not accepted; make another one, or unset it"
    if status == 429:
        return f"{constants.ENDPOINT} answers 429, too many requests from here; wait some minutes, or set HF_TOKEN"
    return f"{page} answers {status}; try again later"
