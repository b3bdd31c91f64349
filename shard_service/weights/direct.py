"""Units straight from where the model was fetched: byte ranges over HTTP, as one more member that may be asked.

The coordinator names the URLs; what may be asked for is decided here. Bytes are believed as those of any other member: by their digest.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

from dairllm.mesh.errors import InvalidModel, PeerUnreachable
from dairllm.mesh.weights import PIECE_BYTES
from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.http_stream import HttpStream
from dairllm.model_files.getting.references import is_near
from dairllm.model_files.manifest import Unit

_THREADS = 4


class ByteRange(NamedTuple):
    """Of a file of the model; end: the byte behind the last one."""

    file_index: int
    start: int
    end: int


def ranges_from(unit: Unit, offset: int) -> list[ByteRange]:
    """Where the bytes of a unit lie from this offset in it on, in order; neighbours in a file are one."""
    found: list[ByteRange] = []
    skipped = offset
    for file_index, start, size in unit.places:
        skip = min(skipped, size)
        skipped -= skip
        if skip == size:
            continue
        if found and found[-1].file_index == file_index and found[-1].end == start + skip:
            found[-1] = found[-1]._replace(end=start + size)
        else:
            found.append(ByteRange(file_index, start + skip, start + size))
    return found


def require_allowed(urls: Sequence[str], endpoint: str) -> None:
    """Raise InvalidModel unless each URL is one that this shard asks for: of its own hub (endpoint), or https:// outside of this
    network."""
    for url in urls:
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            host = ""
        is_outside = host and parts.scheme == "https" and not is_near(host) and not parts.username and not parts.password
        if not (url.startswith(f"{endpoint}/") or is_outside):
            raise InvalidModel(
                f"weights are not fetched from {url[:200]!r}; expected a URL of {endpoint}, or of https:// outside of this network"
            )


class DirectMember:
    """The files behind these URLs, in the order in which tensors name them; see `fetching.RemoteMember`. Close it."""

    def __init__(self, urls: Sequence[str], silence_s: float) -> None:
        self.name = f"https://{urlsplit(urls[0]).hostname}"
        self._urls = urls
        self._silence_s = silence_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="direct")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def pieces(self, unit: Unit, offset: int) -> AsyncGenerator[bytes, None]:
        """From this offset to the end. Raises PeerUnreachable."""
        loop = asyncio.get_running_loop()
        for place in ranges_from(unit, offset):
            try:
                stream = await loop.run_in_executor(self._threads, self._opened, place)
                try:
                    left_bytes = place.end - place.start
                    while left_bytes:
                        data = await loop.run_in_executor(self._threads, _read_piece, stream, min(left_bytes, PIECE_BYTES))
                        left_bytes -= len(data)
                        yield data
                finally:
                    stream.close()
            except ModelFetchError as error:
                raise PeerUnreachable(f"{self.name} does not give unit {unit.index}: {error}") from error

    def _opened(self, place: ByteRange) -> HttpStream:
        from dairllm.model_files.getting.hub import token_for  # takes a while

        url = self._urls[place.file_index]
        stream = HttpStream(url, token_for(url), place.start, place.end, silence_s=self._silence_s)
        if stream.start != place.start:
            stream.close()
            raise ModelFetchError("it knows no ranges of bytes")
        return stream


def _read_piece(stream: HttpStream, size_bytes: int) -> bytes:
    """All of it; ModelFetchError if the stream ends before."""
    parts: list[bytes] = []
    missing = size_bytes
    while missing:
        data = stream.read(missing)
        if not data:
            raise ModelFetchError("it ended before all bytes were there")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
