"""Whether what is to be fetched fits the disk: asked before, not found out when it is full."""

import shutil
from pathlib import Path

from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.choosing import describe_size

_LEFT_FREE_BYTES = 64 << 20
"""For everything else that writes to the disk meanwhile."""


def require_space(name: str, needed_bytes: int, folder: Path, remedy: str) -> None:
    """Raises ModelFetchError unless so much more fits the disk that the folder lies on, or would. remedy: what to do, besides deleting."""
    if needed_bytes <= 0:
        return
    free_bytes = _free_bytes(folder)
    if needed_bytes + _LEFT_FREE_BYTES > free_bytes:
        raise ModelFetchError(
            f"{name} needs {describe_size(needed_bytes)} more on the disk of {folder}, where {describe_size(free_bytes)} are free; "
            f"delete something (`dairllm models list`), or {remedy}"
        )


def _free_bytes(folder: Path) -> int:
    for existing in (folder, *folder.parents):
        try:
            return shutil.disk_usage(existing).free
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ModelFetchError(f"{existing} cannot be written to: {error.strerror or error}") from error
    raise ModelFetchError(f"{folder} lies nowhere; expected a folder that can be made")
