"""No room imports one above it, and no package one that it must not."""

from tests.structure.order import Import, imports, is_allowed, place_of, unplaced_rooms
from tests.structure.sources import ROOT, folder_of, imports_of, sources_of, tree_of


def module(name: str) -> Import:
    """An import of the planner by this file."""
    return Import(ROOT / name, folder_of("coordinator") / "planner" / "search.py")


def test_imports_go_downwards() -> None:
    wrong = {(str(one.importer.relative_to(ROOT)), str(one.imported.relative_to(ROOT))) for one in imports() if not is_allowed(one)}
    assert not wrong


def test_every_room_has_a_place() -> None:
    assert unplaced_rooms() == []


def test_what_lies_in_folders_is_imported_by_the_name_of_its_package() -> None:
    """At the root of a checkout `import mesh` would work, too, and make a second one of each class."""
    bare = {
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("kernels_pyx", "model_files", "mesh", "shard_service", "coordinator", "client")
        for path in sources_of(package)
        for name in imports_of(tree_of(path))
        if (ROOT / name.split(".")[0]).is_dir()
    }
    assert not bare


def test_the_check_sees_what_is_wrong() -> None:
    assert is_allowed(module("coordinator/cluster/machine.py"))
    assert not is_allowed(module("shard_service/main.py"))
    assert not is_allowed(module("coordinator/settings.py"))
    assert not is_allowed(module("client/cli.py"))
    assert place_of(ROOT / "protos" / "dairllm" / "v1" / "ring_pb2.py") == ("v1", ".")
    assert len(list(imports())) > 500
