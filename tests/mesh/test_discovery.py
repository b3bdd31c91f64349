"""Discovery for real: within one process on this machine's interfaces, and between processes on hosts of their own."""

import asyncio
import contextlib
import json
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery.announcer import Announcer
from dairllm.mesh.discovery.browsers import Browser, ShardBrowser
from dairllm.mesh.discovery.candidates import MAX_CANDIDATES, Candidates
from dairllm.mesh.discovery.reading import MAX_HOSTS, read_coordinator, read_shard
from dairllm.mesh.discovery.records import SERVICE_TYPE, Announcement, DiscoveredCoordinator, DiscoveredShard, Role, ShardState
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.interfaces import announced_addresses, real_interface_addresses
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess, ProcessFailed

FOUND_WITHIN_S = 3.0
ENDPOINT = str(Path(__file__).with_name("mdns_endpoint.py"))

needs_namespaces = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def new_cluster() -> str:
    """Other tests on this machine may announce at the same time."""
    return f"test-{new_id()}"


async def first_found(browser: Browser, timeout_s: float = FOUND_WITHIN_S) -> DiscoveredCoordinator:
    async with asyncio.timeout(timeout_s):
        async for coordinator in browser.found():
            return coordinator
    raise AssertionError("found() has no end")


async def found_with_id(browser: Browser, coordinator_id: str, timeout_s: float = FOUND_WITHIN_S) -> DiscoveredCoordinator:
    async with asyncio.timeout(timeout_s):
        async for coordinator in browser.found():
            if coordinator.coordinator_id == coordinator_id:
                return coordinator
    raise AssertionError("found() has no end")


def test_the_cluster_is_told_by_a_hash() -> None:
    assert cluster_hash("dairllm") == cluster_hash("dairllm") != cluster_hash("dairllm ")
    assert len(cluster_hash("ü")) == 16
    with pytest.raises(InvalidSetting, match="empty"):
        cluster_hash(" ")


@pytest.mark.parametrize("announcer_first", [True, False])
async def test_whoever_starts_first_is_found_within_seconds(announcer_first: bool) -> None:
    cluster = cluster_hash(new_cluster())
    announcement = Announcement(new_id(), cluster, 4321)
    announcer, browser = Announcer(announcement), Browser(cluster)
    first, second = (announcer, browser) if announcer_first else (browser, announcer)
    async with first:
        await asyncio.sleep(0.3)  # the first one's packets are out before the second one listens
        async with second:
            found = await first_found(browser)
    hosts = real_interface_addresses() or ["127.0.0.1"]
    expected = {f"[{host}]:4321" if ":" in host else f"{host}:4321" for host in hosts}
    assert (found.coordinator_id, found.cluster_hash, found.protocol) == (announcement.id, cluster, f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}")
    assert set(found.addresses) == expected


async def test_given_addresses_are_announced_as_they_are() -> None:
    cluster = cluster_hash(new_cluster())
    async with Browser(cluster) as browser, Announcer(Announcement(new_id(), cluster, 99, ("127.0.0.1",))):
        assert (await first_found(browser)).addresses == ("127.0.0.1:99",)


async def test_other_clusters_are_known_but_not_offered() -> None:
    mine, other, other_id = cluster_hash(new_cluster()), cluster_hash(new_cluster()), new_id()
    async with Browser(mine) as browser, Announcer(Announcement(other_id, other, 1)):
        with pytest.raises(TimeoutError):
            await first_found(browser, 1.5)
        assert other_id in [coordinator.coordinator_id for coordinator in browser.foreign]
        my_id = new_id()
        async with Announcer(Announcement(my_id, mine, 1)):
            assert (await first_found(browser)).coordinator_id == my_id


async def test_one_that_stops_is_forgotten() -> None:
    cluster = cluster_hash(new_cluster())
    async with Browser(cluster) as browser:
        async with Announcer(Announcement(new_id(), cluster, 1)):
            await first_found(browser)
        await asyncio.sleep(1.2)  # records that are taken back live one second more
        with pytest.raises(TimeoutError):
            await first_found(browser, 2.5)


async def test_the_newest_comes_first_and_a_tried_one_again_later() -> None:
    cluster, old_id, new = cluster_hash(new_cluster()), new_id(), new_id()
    async with Browser(cluster) as browser, Announcer(Announcement(old_id, cluster, 1)):
        assert (await first_found(browser)).coordinator_id == old_id
        async with Announcer(Announcement(new, cluster, 2)):
            started_s = asyncio.get_running_loop().time()
            order = []
            async with asyncio.timeout(2 * FOUND_WITHIN_S):
                async for coordinator in browser.found():
                    order.append(coordinator.coordinator_id)
                    if len(order) == 3:
                        break
    assert order[0] == new
    assert set(order[1:]) == {old_id, new}
    assert asyncio.get_running_loop().time() - started_s > 1.0


def hostile_records() -> Iterator[dict[str, Any]]:
    good = {"role": "coordinator", "id": "x", "cluster": "c", "proto": "1.0"}
    yield {"properties": {}}
    yield {"properties": {**good, "role": "printer"}}
    yield {"properties": {**good, "id": "../../etc"}}
    yield {"properties": {**good, "id": "x" * 200}}
    yield {"properties": {**good, "id": b"\xff\xfe"}}
    yield {"properties": {**good, "id": None}}
    yield {"properties": good, "port": 0}
    yield {"properties": good, "parsed_addresses": []}
    yield {"properties": good, "parsed_addresses": ["fe80::1"]}


async def test_records_of_others_harm_nobody() -> None:
    cluster, mine = cluster_hash(new_cluster()), new_id()
    endpoint = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        for record in hostile_records():
            record = {"port": 5, "parsed_addresses": ["127.0.0.1"], **record}
            record["properties"] = {**record["properties"], "cluster": cluster}
            info = AsyncServiceInfo(SERVICE_TYPE, f"{new_id()}.{SERVICE_TYPE}", server=f"{new_id()}.local.", **record)
            await endpoint.async_register_service(info, cooperating_responders=True)
        async with Browser(cluster) as browser, Announcer(Announcement(mine, cluster, 1)):
            async with asyncio.timeout(FOUND_WITHIN_S):
                offered = [(await first_found(browser)).coordinator_id]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    async for coordinator in browser.found():
                        offered.append(coordinator.coordinator_id)
            assert set(offered) == {mine}
    finally:
        await endpoint.async_close()


def shard_record(**changes: object) -> AsyncServiceInfo:
    said = Announcement("x1", "0123456789abcdef", 9, ("10.0.0.5",), role=Role.SHARD, name="küche", state=ShardState.LOOKING)
    properties = {**said.properties, **{key: value for key, value in changes.items() if key in said.properties}}
    facts = {"port": 9, "parsed_addresses": ["10.0.0.5"], "server": "x1.local.", **changes}
    kept = {key: value for key, value in facts.items() if key not in said.properties}
    return AsyncServiceInfo(SERVICE_TYPE, f"x1.{SERVICE_TYPE}", properties=properties, **kept)  # type: ignore[arg-type]


def test_what_a_shard_says_is_read_as_it_was_said() -> None:
    expected = DiscoveredShard("x1", "küche", "0123456789abcdef", f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}", ShardState.LOOKING, ("10.0.0.5:9",))
    assert read_shard(shard_record()) == expected
    assert read_coordinator(shard_record()) is None


def test_a_long_name_is_cut_to_what_a_record_holds() -> None:
    said = Announcement("x1", "c", 9, role=Role.SHARD, name="ü" * 500)
    assert "ü" * 90 < said.properties["name"] < "ü" * 110
    AsyncServiceInfo(SERVICE_TYPE, said.instance_name, port=9, properties=dict(said.properties))


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "printer"},
        {"id": "../../etc"},
        {"id": "x" * 64},
        {"cluster": ""},
        {"cluster": "x" * 200},
        {"proto": "one"},
        {"proto": "1" * 50 + ".0"},
        {"state": "asleep"},
        {"port": 0},
        {"parsed_addresses": []},
        {"parsed_addresses": ["fe80::1"]},
        {"id": b"\xff\xfe"},
    ],
)
def test_a_shards_record_that_is_none_is_passed_over(changes: dict[str, object]) -> None:
    assert read_shard(shard_record(**changes)) is None


def test_of_a_record_only_so_much_is_taken() -> None:
    many = read_shard(shard_record(parsed_addresses=[f"10.0.1.{number}" for number in range(50)], name="a\x1b[2Jb"))
    assert many is not None
    assert len(many.addresses) == MAX_HOSTS
    assert many.name == ""


async def test_a_shard_is_seen_with_its_state_and_its_end() -> None:
    cluster, shard_id = cluster_hash(new_cluster()), new_id()
    seen: asyncio.Queue[DiscoveredShard | None] = asyncio.Queue()

    def on_seen(key: str, shard: DiscoveredShard) -> None:
        if shard.shard_id == shard_id:
            seen.put_nowait(shard)

    def on_gone(key: str) -> None:
        if key.startswith(shard_id):
            seen.put_nowait(None)

    async def wait_for_state(state: ShardState) -> None:
        while (shard := await seen.get()) is None or shard.state is not state:
            pass

    said = Announcement(shard_id, cluster, 9, role=Role.SHARD, name="b")
    async with asyncio.timeout(30), ShardBrowser(on_seen, on_gone):
        async with Announcer(said) as announcer:
            await wait_for_state(ShardState.LOOKING)
            announcer.announce(replace(said, state=ShardState.JOINED))
            await wait_for_state(ShardState.JOINED)
        while await seen.get() is not None:
            pass


async def test_a_host_name_is_announced_by_its_addresses() -> None:
    assert await announced_addresses("10.1.2.3") == ("10.1.2.3",)
    assert "127.0.0.1" in await announced_addresses("localhost")
    assert await announced_addresses("nosuch.invalid") == ("127.0.0.1",)
    assert await announced_addresses("0.0.0.0") == await announced_addresses("") == ()


async def test_a_suggestion_is_tried_like_one_that_was_heard_until_it_is_too_old() -> None:
    loop = asyncio.get_running_loop()
    candidates = Candidates()
    candidates.take("suggested", DiscoveredCoordinator("x", "c", "1.0", ("10.0.0.5:1",)), loop.time() + 0.2)
    assert (await anext(candidates.found())).addresses == ("10.0.0.5:1",)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            await anext(candidates.found())


async def test_candidates_are_bounded_and_the_newest_stay() -> None:
    candidates = Candidates()
    for number in range(3 * MAX_CANDIDATES):
        candidates.take(str(number), DiscoveredCoordinator(f"x{number}", "c", "1.0", ("10.0.0.5:1",)))
    offered = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            async for coordinator in candidates.found():
                offered.append(coordinator.coordinator_id)
    assert offered == [f"x{number}" for number in range(3 * MAX_CANDIDATES - 1, 2 * MAX_CANDIDATES - 1, -1)]


def announcer(network: Namespaces, host: str, coordinator_id: str, cluster: str, port: int) -> ManagedProcess:
    return network.managed(host, [sys.executable, ENDPOINT, "announce", coordinator_id, cluster, str(port)])


def browser(network: Namespaces, host: str, cluster: str, timeout_s: float = 60) -> ManagedProcess:
    return network.managed(host, [sys.executable, ENDPOINT, "browse", cluster, str(timeout_s)])


def seen_by(process: ManagedProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]


@pytest.mark.namespaces
@needs_namespaces
@pytest.mark.parametrize("announcer_first", [True, False])
@pytest.mark.parametrize("hosts", [("a", "b"), ("a", "a")], ids=["two hosts", "one host"])
def test_between_hosts(announcer_first: bool, hosts: tuple[str, str]) -> None:
    cluster, coordinator_id = new_cluster(), new_id()
    with Namespaces(["a", "b"]) as network:
        announcing = announcer(network, hosts[0], coordinator_id, cluster, 4000)
        browsing = browser(network, hosts[1], cluster)
        with announcing, browsing:
            if announcer_first:
                announcing.wait_output("announced")
                time.sleep(1.0)
                browsing.wait_output("browsing")
            else:
                browsing.wait_output("browsing")
                announcing.wait_output("announced")
            browsing.wait_output(coordinator_id, FOUND_WITHIN_S)
            assert seen_by(browsing)[0] == {"id": coordinator_id, "addresses": [f"{network.address(hosts[0])}:4000"]}


@pytest.mark.namespaces
@needs_namespaces
def test_between_hosts_without_ipv4() -> None:
    cluster, coordinator_id = new_cluster(), new_id()
    with Namespaces(["a", "b"], ipv6=True) as network, browser(network, "b", cluster) as browsing:
        browsing.wait_output("browsing")
        with announcer(network, "a", coordinator_id, cluster, 4000) as announcing:
            announcing.wait_output("announced")
            browsing.wait_output(coordinator_id, FOUND_WITHIN_S)
            assert seen_by(browsing)[0] == {"id": coordinator_id, "addresses": [f"[{network.address('a')}]:4000"]}


@pytest.mark.namespaces
@needs_namespaces
def test_a_host_with_loopback_alone() -> None:
    cluster, coordinator_id = new_cluster(), new_id()
    with Namespaces(["a"]) as network:
        network.run("a", ["ip", "link", "delete", "veth0"]).wait(10)
        with announcer(network, "a", coordinator_id, cluster, 4000) as announcing, browser(network, "a", cluster) as browsing:
            announcing.wait_output("announced")
            browsing.wait_output("browsing")
            browsing.wait_output(coordinator_id, FOUND_WITHIN_S)
            assert seen_by(browsing)[0] == {"id": coordinator_id, "addresses": ["127.0.0.1:4000"]}


@pytest.mark.namespaces
@needs_namespaces
def test_without_multicast_nothing_is_found_and_nothing_fails() -> None:
    cluster = new_cluster()
    with Namespaces(["a", "b"]) as network:
        network.block_multicast("a")
        with announcer(network, "a", new_id(), cluster, 4000) as announcing, browser(network, "b", cluster) as browsing:
            announcing.wait_output("announced")
            browsing.wait_output("browsing")
            with pytest.raises(ProcessFailed):
                browsing.wait_output('"id"', FOUND_WITHIN_S)
            assert browsing.terminate() == 0
            assert announcing.terminate() == 0
            assert seen_by(browsing) == [{"foreign": []}]


@pytest.mark.namespaces
@needs_namespaces
def test_a_killed_coordinator_that_comes_back_elsewhere_is_found_anew() -> None:
    cluster, old_id, coordinator_id = new_cluster(), new_id(), new_id()
    with Namespaces(["a", "b"]) as network, browser(network, "b", cluster) as browsing:
        with announcer(network, "a", old_id, cluster, 4000) as old:
            browsing.wait_output(old_id)
            old.kill()
        with announcer(network, "a", coordinator_id, cluster, 4001) as new:
            new.wait_output("announced")
            browsing.wait_output(coordinator_id, FOUND_WITHIN_S)
            assert seen_by(browsing)[-1] == {"id": coordinator_id, "addresses": [f"{network.address('a')}:4001"]}


@pytest.mark.namespaces
@needs_namespaces
def test_a_network_that_comes_later_is_used() -> None:
    cluster, coordinator_id = new_cluster(), new_id()
    with Namespaces(["a", "b"]) as network:
        network.run("b", ["ip", "link", "set", "veth0", "down"]).wait(10)
        with announcer(network, "a", coordinator_id, cluster, 4000) as announcing, browser(network, "b", cluster) as browsing:
            announcing.wait_output("announced")
            browsing.wait_output("browsing")
            network.run("b", ["ip", "link", "set", "veth0", "up"]).wait(10)
            browsing.wait_output(coordinator_id, 8)
            browsing.send(signal.SIGTERM)
            assert browsing.wait(10) == 0
