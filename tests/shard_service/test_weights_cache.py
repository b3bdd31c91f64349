"""Units on disk: what is kept, what goes, and who may write."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.shard_service.weights.disk_cache import CompleteUnit, Entry, NoRoom, PartialUnit, WeightsCache, choose_evictions

ENTRIES = st.lists(
    st.builds(Entry, st.text("abcdef", min_size=1, max_size=3), st.integers(0, 100), st.integers(0, 1000)),
    unique_by=lambda entry: entry.name,
    max_size=12,
)


@given(ENTRIES, st.integers(0, 200), st.integers(0, 600), st.sets(st.text("abcdef", min_size=1, max_size=3)))
def test_as_little_goes_as_must_the_oldest_first(entries: list[Entry], needed: int, allowed: int, keep: set[str]) -> None:
    chosen = choose_evictions(entries, needed, allowed, keep)
    total = sum(entry.size_bytes for entry in entries) + needed
    if chosen is None:
        assert total - sum(entry.size_bytes for entry in entries if entry.name not in keep) > allowed
        return
    assert total - sum(entry.size_bytes for entry in chosen) <= allowed
    assert not any(entry.name in keep for entry in chosen)
    if chosen:
        assert total - sum(entry.size_bytes for entry in chosen[:-1]) > allowed
        stay = [entry for entry in entries if entry not in chosen and entry.name not in keep]
        assert max(entry.used_ns for entry in chosen) <= min((entry.used_ns for entry in stay), default=1000)


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def put(cache: WeightsCache, data: bytes, keep: tuple[bytes, ...] = ()) -> None:
    partial = cache.begin(digest_of(data), len(data), keep)
    assert isinstance(partial, PartialUnit)
    with partial:
        partial.append(data)
        partial.commit()
    cache.end(digest_of(data))


def names(cache: WeightsCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "dairllm" / "units", 1000, lambda folder: 10**9)


def test_what_was_written_is_found(cache: WeightsCache) -> None:
    data = b"weights" * 20
    put(cache, data)
    again = cache.begin(digest_of(data), len(data))
    assert isinstance(again, CompleteUnit)
    with again:
        assert again.read(0, 1000) == data
        again.discard()
    assert cache.find(digest_of(data), len(data)) is None
    assert names(cache) == set()


def test_a_file_of_another_size_is_removed(cache: WeightsCache) -> None:
    put(cache, b"weights")
    assert cache.find(digest_of(b"weights"), 8) is None
    assert names(cache) == set()


def test_goes_on_where_the_last_one_stopped(cache: WeightsCache) -> None:
    data = bytes(range(200))
    first = cache.begin(digest_of(data), 200)
    assert isinstance(first, PartialUnit)
    first.append(data[:120])
    assert cache.partial_bytes(digest_of(data)) == 120
    first.close()
    second = cache.begin(digest_of(data), 200)
    assert isinstance(second, PartialUnit)
    with second:
        assert second.size_bytes == 120
        assert second.read(0, 1000) == data[:120]


def test_nothing_is_written_or_renamed_after_it_was_closed(cache: WeightsCache) -> None:
    partial = cache.begin(digest_of(b"x"), 1)
    assert isinstance(partial, PartialUnit)
    partial.close()
    for work in (lambda: partial.append(b"x"), partial.commit, lambda: partial.read(0, 1)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            work()
    assert names(cache) == {digest_of(b"x").hex() + ".partial"}


def test_a_partial_that_is_too_long_begins_anew(cache: WeightsCache) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / (digest_of(b"x").hex() + ".partial")).write_bytes(bytes(50))
    partial = cache.begin(digest_of(b"x"), 1)
    assert isinstance(partial, PartialUnit)
    with partial:
        assert partial.size_bytes == 0


def test_only_one_writes(cache: WeightsCache) -> None:
    data = b"weights"
    other = WeightsCache(cache.folder, 1000)
    first = cache.begin(digest_of(data), len(data))
    assert isinstance(first, PartialUnit)
    assert other.begin(digest_of(data), len(data)) is None
    with first:
        first.append(data)
        first.commit()
        complete = other.begin(digest_of(data), len(data))
        assert isinstance(complete, CompleteUnit)
        complete.close()


def test_the_least_recently_used_goes_first(cache: WeightsCache) -> None:
    data = [bytes([i]) * 300 for i in range(5)]
    for number, part in enumerate(data[:3]):
        put(cache, part)
        os.utime(cache.folder / digest_of(part).hex(), ns=(number, number))
    found = cache.find(digest_of(data[0]), 300)
    assert found is not None
    found.close()
    put(cache, data[3])
    assert names(cache) == {digest_of(data[i]).hex() for i in (0, 2, 3)}
    keep = tuple(digest_of(data[i]) for i in (0, 2, 3))
    with pytest.raises(NoRoom, match="1000 B"):
        cache.begin(digest_of(data[4]), 300, keep)
    assert names(cache) == {digest.hex() for digest in keep}


def test_what_is_being_fetched_counts_with_all_its_bytes(cache: WeightsCache) -> None:
    put(cache, bytes(300))
    one = cache.begin(digest_of(b"1"), 500)
    assert isinstance(one, PartialUnit)
    with one:
        two = cache.begin(digest_of(b"2"), 400)
        assert isinstance(two, PartialUnit)
        with two:
            assert names(cache) == {digest_of(b).hex() + ".partial" for b in (b"1", b"2")}
            with pytest.raises(NoRoom):
                cache.begin(digest_of(b"3"), 101)


def test_never_more_than_half_of_the_free_space(tmp_path: Path) -> None:
    cache = WeightsCache(tmp_path, 10**9, lambda folder: 1000 - sum(path.stat().st_size for path in folder.iterdir()))
    put(cache, bytes(400))
    with pytest.raises(NoRoom):
        cache.begin(digest_of(b"1"), 200, [digest_of(bytes(400))])
    put(cache, bytes(500))
    assert names(cache) == {digest_of(bytes(500)).hex()}


def test_what_another_process_fetches_is_not_evicted(cache: WeightsCache) -> None:
    other = WeightsCache(cache.folder, 1000, lambda folder: 10**9)
    theirs = other.begin(digest_of(b"theirs"), 900)
    assert isinstance(theirs, PartialUnit)
    with theirs:
        theirs.append(bytes(900))
        ours = cache.begin(digest_of(b"ours"), 900)
        assert isinstance(ours, PartialUnit)
        ours.close()
        theirs.commit()
        assert cache.find(digest_of(b"theirs"), 900) is not None


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        WeightsCache(tmp_path / "file" / "units", 1000).begin(digest_of(b"x"), 1)
    assert raised.value.errno == errno.ENOTDIR
