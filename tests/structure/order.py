"""Who may import whom: packages, and inside each of them its rooms (folders, and files at its root that have a place of their own)."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.structure.sources import PACKAGES, folder_of, imported_modules, module_name, module_path, sources_of

ABOVE_ALL = ("v1", "kernels_pyx", "model_files", "mesh")
MAY_IMPORT = {
    "v1": (),
    "kernels_pyx": (),
    "model_files": ("v1", "kernels_pyx"),
    "mesh": ("v1", "kernels_pyx"),
    "shard_service": ABOVE_ALL,
    "coordinator": ABOVE_ALL,
    "client": ("v1", "mesh"),
}
FILES = "."
"""The other files at the root of a package."""
ROOMS = {
    "model_files": (
        *("errors", "block_formats", "containers", FILES, "getting", "checkpoints", "architectures", "manifest_builder"),
        *("inspection", "converting"),
    ),
    "mesh": ("errors", "sampling", "ranges", FILES, "discovery", "ring"),
    "shard_service": (
        *("settings", "assignment", "machine", "membership", "ring", "weights", "kv_cache", "forward", "epochs", "bench"),
        FILES,
    ),
    "coordinator": (
        *("prefix_reuse", "settings", "dashboard", "assignments", "planner", "cluster", "engine", "ring", "text"),
        *("model", "model_commands", "membership", "invitations", "services", "http"),
        FILES,
    ),
    "client": ("client", "options", FILES, "doctor", "cli"),
}
"""From below to above: a room imports only those before it."""


class Place(NamedTuple):
    """Where a module stands. room: of ROOMS, or FILES in a package without rooms."""

    package: str
    room: str


class Import(NamedTuple):
    importer: Path
    imported: Path


def place_of(path: Path) -> Place:
    package = module_name(path).split(".")[1]
    first = path.relative_to(folder_of(package)).parts[0].removesuffix(".py")
    return Place(package, first if first in ROOMS.get(package, ()) else FILES)


def unplaced_rooms() -> list[str]:
    """Folders with modules that ROOMS does not name."""
    folders = {
        f"{package}/{path.relative_to(folder_of(package)).parts[0]}"
        for package in ROOMS
        for path in sources_of(package)
        if path.parent != folder_of(package)
    }
    return sorted(folders - {f"{package}/{room}" for package, rooms in ROOMS.items() for room in rooms})


def imports() -> Iterator[Import]:
    """All imports between modules of the project."""
    for package in PACKAGES:
        for path in sources_of(package):
            for name in sorted(imported_modules(path)):
                imported = module_path(name)
                assert imported is not None
                yield Import(path, imported)


def is_allowed(one: Import) -> bool:
    importer, imported = place_of(one.importer), place_of(one.imported)
    if importer.package != imported.package:
        return imported.package in MAY_IMPORT[importer.package]
    rooms = ROOMS.get(importer.package, (FILES,))
    return rooms.index(imported.room) <= rooms.index(importer.room)
