"""`dairllm doctor`: its questions, its attempts and its judgement, on this machine alone."""

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from zeroconf import ServiceInfo
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from dairllm.client.doctor import discovery_findings as discovery
from dairllm.client.doctor import findings as judge
from dairllm.client.doctor import member_findings
from dairllm.client.doctor.asking import Answered, answers_directly, coordinators_in
from dairllm.client.doctor.discovery_findings import Wanted
from dairllm.client.doctor.multicast import MulticastSeen, is_response, query
from dairllm.client.doctor.probes import (
    Browsed,
    CoordinatorAnswer,
    InterfaceSeen,
    NoAnswer,
    Outcome,
    PortSeen,
    Reach,
    ask_coordinator,
    is_absent_neighbour,
    see_interfaces,
    see_port,
    try_connect,
)
from dairllm.client.doctor.report import conclusion, most_likely_reason, to_json
from dairllm.mesh.diagnosis import Finding, ModelIdentity, Status, Subject
from dairllm.mesh.discovery.records import SERVICE_TYPE, Announcement, DiscoveredCoordinator
from dairllm.mesh.interfaces import real_interface_addresses
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.shard_service.machine.doctor_checks import (
    Cores,
    check_machine,
    check_models,
    has_name,
    judge_cores,
    judge_digest,
    judge_memory,
)
from dairllm.v1 import cluster_pb2
from tests.client.fake_cluster import FakeCluster
from tests.instruments.clusters import Cluster
from tests.instruments.commands import RunDairllm
from tests.instruments.processes import free_port
from tests.tiny_gguf import write_tiny_llama

WANTED = Wanted("kitchen", "00ff", None)
GIVEN = Wanted("kitchen", "00ff", "10.0.0.5:7117")
OWN = DiscoveredCoordinator("one", "00ff", "1.0", ("10.0.0.5:7117",))
FOREIGN = DiscoveredCoordinator("two", "abcd", "1.0", ("10.0.0.6:7117",))
STATUSES = st.sampled_from(Status)
FINDINGS = st.builds(Finding, st.sampled_from(["A", "B"]), st.sampled_from(["version", "discovery", "odd"]), STATUSES, st.text(min_size=1))


def answer(**identity: object) -> CoordinatorAnswer:
    facts = {"protocol_major": PROTOCOL_MAJOR, "protocol_minor": PROTOCOL_MINOR, "cluster_hash": "00ff", **identity}
    state = cluster_pb2.ClusterState(model="m", software_version="1.2.3", phase=cluster_pb2.CLUSTER_PHASE_SERVING)
    return CoordinatorAnswer("10.0.0.5:7117", state, cluster_pb2.CoordinatorIdentity(**facts), 0.1)  # type: ignore[arg-type]


def problems(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.status is Status.PROBLEM]


# Multicast


@given(st.integers(1, 0xFFFF))
def test_the_question_is_one_that_responders_understand(query_id: int) -> None:
    packet = DNSIncoming(query(query_id))
    assert packet.valid
    assert packet.is_query()
    assert packet.id == query_id
    assert [question.name for question in packet.questions] == [SERVICE_TYPE]


@given(st.binary(max_size=40), st.integers(1, 0xFFFF))
def test_only_answers_to_the_question_count(packet: bytes, query_id: int) -> None:
    head = query_id.to_bytes(2, "big")
    assert is_response(head + b"\x84\x00" + bytes(8) + packet, query_id)
    assert not is_response(query(query_id), query_id)
    assert not is_response((query_id ^ 1).to_bytes(2, "big") + b"\x84\x00" + bytes(8) + packet, query_id)
    assert not is_response(packet[:11], query_id)


async def test_silence_is_no_direct_answer() -> None:
    assert not await answers_directly("192.0.2.1", 0.3)


@pytest.mark.parametrize(
    ("seen", "check"),
    [
        (MulticastSeen("eth0", "10.0.0.2", "Operation not permitted", False), "multicast"),
        (MulticastSeen("eth0", "10.0.0.2", "", False), "multicast"),
        (MulticastSeen("eth0", "10.0.0.2", "", True), None),
        (MulticastSeen("eth0", "10.0.0.2", "", True, ("10.0.0.9",)), None),
    ],
)
def test_multicast_of_this_machine(seen: MulticastSeen, check: str | None) -> None:
    finding = discovery.judge_multicast(seen)
    assert problems([finding]) == ([check] if check else [])
    assert "eth0 (10.0.0.2)" in finding.seen
    assert all(host in finding.seen for host in seen.others)


# Finding each other

QUIET = [MulticastSeen("eth0", "10.0.0.2", "", True)]
LIVELY = [MulticastSeen("eth0", "10.0.0.2", "", True, ("10.0.0.9",))]
HEARD = [MulticastSeen("eth0", "10.0.0.2", "", True, ("10.0.0.5",))]
NOBODY = Answered()
HEARS_US = Answered(frozenset({"10.0.0.5"}), frozenset({OWN}))


@pytest.mark.parametrize(
    ("wanted", "browsed", "multicast", "asked", "answered", "direct", "checks", "words"),
    [
        (WANTED, Browsed((OWN,)), QUIET, NOBODY, answer(), True, [], "10.0.0.5:7117"),
        (WANTED, Browsed((), (FOREIGN,)), QUIET, NOBODY, None, None, ["cluster_name"], "abcd"),
        (WANTED, Browsed(), QUIET, NOBODY, None, None, ["discovery"], "nobody else is there"),
        (WANTED, Browsed(), LIVELY, NOBODY, None, None, ["discovery"], "10.0.0.9 was heard"),
        (GIVEN, Browsed(), QUIET, NOBODY, answer(), True, ["multicast_blocked"], "blocked between"),
        (GIVEN, Browsed(), LIVELY, NOBODY, answer(), True, ["multicast_blocked"], "others are heard: 10.0.0.9"),
        (GIVEN, Browsed(), QUIET, NOBODY, answer(), False, [], "--no-discovery"),
        (GIVEN, Browsed(), QUIET, NOBODY, answer(), None, [], "runs on this machine"),
        (WANTED, Browsed(), QUIET, HEARS_US, answer(), True, [], "is found and invited by it"),
        (GIVEN, Browsed(), LIVELY, HEARS_US, answer(), False, [], "hears what this machine sends"),
        (WANTED, Browsed((OWN,)), HEARD, NOBODY, answer(), True, [], "does not arrive there"),
    ],
)
def test_discovery(
    wanted: Wanted,
    browsed: Browsed,
    multicast: list[MulticastSeen],
    asked: Answered,
    answered: CoordinatorAnswer | None,
    direct: bool | None,
    checks: list[str],
    words: str,
) -> None:
    findings = discovery.judge_discovery(wanted, browsed, multicast, asked, answered, direct)
    assert problems(findings) == checks
    assert words in " ".join(finding.seen + finding.matters for finding in findings)


@pytest.mark.parametrize(("asked", "direct"), [(HEARS_US, True), (NOBODY, None), (NOBODY, False)])
def test_where_both_directions_work_or_nothing_is_known_nothing_is_said(asked: Answered, direct: bool | None) -> None:
    findings = discovery.judge_discovery(WANTED, Browsed((OWN,)), HEARD, asked, answer(), direct)
    assert [finding.check for finding in findings] == ["discovery"]


def announced(**changes: object) -> bytes:
    """What a coordinator answers."""
    said = Announcement("one", "00ff", 7117, ("10.0.0.5",), protocol="1.0")
    facts = {"port": said.port, "properties": dict(said.properties), "parsed_addresses": list(said.addresses), "server": "one.local."}
    info = ServiceInfo(SERVICE_TYPE, said.instance_name, **(facts | changes))  # type: ignore[arg-type]
    packet = DNSOutgoing(0x8400)
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
        packet.add_answer_at_time(record, 0)
    return packet.packets()[0]


def test_an_answer_names_the_coordinator() -> None:
    assert coordinators_in(announced()) == {OWN}
    assert coordinators_in(announced(parsed_addresses=[])) == frozenset()
    assert coordinators_in(announced(properties={"role": "shard", "id": "one"})) == frozenset()
    assert coordinators_in(query(7)) == frozenset()


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=8))
@example(b"", 44, b"\x00")
def test_answers_of_strangers_harm_nobody(noise: bytes, start: int, change: bytes) -> None:
    packet = announced()
    for spoiled in (noise, packet[:start], packet[:start] + change + packet[start + len(change) :]):
        assert len(coordinators_in(spoiled)) <= 1


def test_two_coordinators_of_one_name_are_worth_a_warning() -> None:
    findings = discovery.judge_discovery(WANTED, Browsed((OWN, FOREIGN)), QUIET, NOBODY, answer(), True)
    assert [finding.check for finding in findings if finding.status is Status.WARNING] == ["ambiguity"]


def test_a_coordinator_that_cannot_be_reached_is_said_once() -> None:
    """Whether it is heard says nothing then."""
    assert discovery.judge_discovery(GIVEN, Browsed(), QUIET, NOBODY, None, None) == []
    findings = judge.judge_reach([Reach("10.0.0.5:7117", Outcome.NO_ANSWER)], "the coordinator", "G", "coordinator_port")
    assert problems(findings) == ["coordinator_port"]


# Connecting


async def test_open_and_refused_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert (await try_connect(f"127.0.0.1:{port}")).outcome is Outcome.OPEN
        assert (await try_connect(f"localhost:{port}")).outcome is Outcome.OPEN
    assert (await try_connect(f"127.0.0.1:{port}")).outcome is Outcome.REFUSED


@pytest.mark.parametrize("address", ["nosuch.invalid:1", "no spaces:1", "10.0.0.1"])
async def test_what_is_no_address_has_no_host(address: str) -> None:
    assert (await try_connect(address)).outcome is Outcome.NO_SUCH_HOST


def test_a_neighbour_without_a_hardware_address_is_absent() -> None:
    table = (
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "10.0.0.7         0x1         0x0         00:00:00:00:00:00     *        eth0\n"
        "10.0.0.8         0x1         0x2         02:42:ac:11:00:02     *        eth0\n"
    )
    assert is_absent_neighbour("10.0.0.7", table)
    assert not is_absent_neighbour("10.0.0.8", table)
    assert not is_absent_neighbour("10.0.0.9", table)
    assert not is_absent_neighbour("10.0.0.7", "")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_words_of_its_own(outcome: Outcome) -> None:
    (finding,) = judge.judge_reach([Reach("10.0.0.5:7117", outcome)], "shard 'b'", "G", "shard_port")
    assert "10.0.0.5:7117" in finding.seen
    assert (finding.status is Status.OK) == (outcome is Outcome.OPEN)
    assert bool(finding.advice) == (outcome is not Outcome.OPEN)


def test_one_address_that_works_is_enough() -> None:
    reaches = [Reach("10.0.0.5:1", Outcome.OPEN), Reach("172.17.0.1:1", Outcome.NO_ANSWER)]
    findings = judge.judge_reach(reaches, "shard 'b'", "G", "shard_port")
    assert problems(findings) == []
    assert "172.17.0.1:1" in findings[1].seen


# What the coordinator says


async def test_a_coordinator_without_identity_is_older() -> None:
    with FakeCluster([cluster_pb2.ClusterState(software_version="0.0.9")]) as cluster:
        said = await ask_coordinator(cluster.address)
    assert isinstance(said, CoordinatorAnswer)
    assert said.identity is None
    assert said.ahead_s is None
    assert judge.judge_versions(said.identity, "0.0.9", "1.0").status is Status.WARNING


async def test_a_stranger_on_the_port_is_no_coordinator() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await ask_coordinator(f"127.0.0.1:{port}", 1.0)
    assert isinstance(said, NoAnswer)
    assert problems([judge.judge_no_answer(said)]) == ["coordinator_answer"]


async def test_a_shard_on_the_port_is_named_by_what_it_offers(cluster: Cluster) -> None:
    (shard, *_) = cluster.state()["shards"]
    said = await ask_coordinator(next(address for address in shard["addresses"] if address.startswith("127.")))
    assert isinstance(said, NoAnswer)
    assert "dairllm.v1.ShardService" in judge.judge_no_answer(said).seen


@pytest.mark.parametrize(
    ("identity", "checks"),
    [
        ({}, []),
        ({"cluster_hash": "abcd"}, ["cluster_name"]),
        ({"protocol_major": PROTOCOL_MAJOR + 1}, ["version"]),
        ({"protocol_minor": PROTOCOL_MINOR + 1}, []),
        ({"cluster_hash": "abcd", "protocol_major": PROTOCOL_MAJOR + 1}, ["cluster_name", "version"]),
    ],
)
def test_identity(identity: dict[str, object], checks: list[str]) -> None:
    assert problems(judge.judge_coordinator(GIVEN, answer(**identity), "1.2.3")) == checks


def test_the_older_side_is_to_be_renewed() -> None:
    def advice(major: int) -> str:
        return judge.judge_versions(cluster_pb2.CoordinatorIdentity(protocol_major=major), "1", "1").advice

    assert "this machine" in advice(PROTOCOL_MAJOR + 1)
    assert "coordinator's machine" in advice(PROTOCOL_MAJOR - 1)


@pytest.mark.parametrize(("ahead_s", "status"), [(0.5, Status.OK), (-1.9, Status.OK), (2.1, Status.WARNING), (-3600, Status.WARNING)])
def test_clocks(ahead_s: float, status: Status) -> None:
    assert judge.judge_clock(ahead_s).status is status


# Members


def members(*shards: cluster_pb2.ShardState) -> list[Finding]:
    return member_findings.judge_members(cluster_pb2.ClusterState(shards=shards), "pi", {"10.0.0.2", "127.0.0.1"}, "1.2.3")


def test_machines_that_are_no_members_are_told_with_the_reason() -> None:
    state = cluster_pb2.ClusterState()
    state.seen.add(name="b", addresses=["10.0.0.2:9"], phase=cluster_pb2.SEEN_SHARD_PHASE_UNREACHABLE, reason="it does not answer")
    state.seen.add(
        name="", addresses=["10.0.0.3:9"], phase=cluster_pb2.SEEN_SHARD_PHASE_OTHER_CLUSTER, reason="it looks for another cluster"
    )
    mine, other = member_findings.judge_seen(state, ["10.0.0.2"])
    assert (mine.status, other.status) == (Status.PROBLEM, Status.WARNING)
    assert "'b' of this machine is no member: it does not answer" in mine.seen
    assert "firewall" in mine.advice
    assert "10.0.0.3:9" in other.seen
    assert "--cluster" in other.advice


def test_a_shard_of_our_name_elsewhere_is_a_clash() -> None:
    elsewhere = members(cluster_pb2.ShardState(name="pi", addresses=["10.0.0.7:900"]))
    assert [finding.check for finding in elsewhere if finding.status is Status.WARNING] == ["shard_name"]
    assert problems(members(cluster_pb2.ShardState(name="pi", addresses=["10.0.0.2:900"]))) == []
    assert problems(members(cluster_pb2.ShardState(name="other", addresses=["10.0.0.7:900"]))) == []


def test_shards_of_other_versions_and_none_at_all_are_worth_a_warning() -> None:
    (version,) = members(cluster_pb2.ShardState(name="b", addresses=["10.0.0.7:900"], software_version="9"))
    (nobody,) = members()
    assert (version.check, version.status) == ("shard_version", Status.WARNING)
    assert (nobody.check, nobody.status) == ("members", Status.WARNING)


def test_loopback_addresses_of_others_are_not_tried() -> None:
    shard = cluster_pb2.ShardState(name="b", addresses=["127.0.0.1:9", "10.0.0.7:9"])
    here = cluster_pb2.ShardState(name="c", addresses=["127.0.0.1:9"])
    assert member_findings.shards_to_try(cluster_pb2.ClusterState(shards=[shard, here])) == {"b": ("10.0.0.7:9",), "c": ("127.0.0.1:9",)}


# This machine


def test_interfaces_in_use_are_those_that_the_programs_use() -> None:
    seen = see_interfaces()
    used = [address for entry in seen if not entry.skipped for address in entry.addresses]
    assert sorted(used) == sorted(real_interface_addresses())
    assert len({entry.name for entry in seen}) == len(seen)


def test_skipped_interfaces_are_named_with_the_reason() -> None:
    findings = judge.judge_interfaces([InterfaceSeen("eth0", ("10.0.0.2",), ""), InterfaceSeen("wlan0", (), "it is down")])
    assert problems(findings) == []
    assert "wlan0: it is down" in findings[1].seen
    assert problems(judge.judge_interfaces([InterfaceSeen("wlan0", (), "it is down")])) == ["interfaces"]


def test_ports_that_others_hold() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        seen = see_port(listening.getsockname()[1], "a test")
    assert not seen.is_free
    assert see_port(free_port("0.0.0.0"), "a test").is_free
    assert judge.judge_port(seen).status is Status.WARNING
    assert judge.judge_port(PortSeen(7117, "a test", False, "python dairllm-coordinator")).status is Status.OK


def test_memory_and_cores() -> None:
    assert judge_memory(8 * 1024**3, 4 * 1024**3).status is Status.OK
    assert judge_memory(8 * 1024**3, 200 * 1024**2).status is Status.WARNING
    assert [finding.check for finding in judge_cores(Cores(8, 4, 8, 4, 0.2))] == ["cores"]
    assert judge_cores(Cores(8, 8, 8, 2, 0.2))[0].status is Status.WARNING
    assert [finding.check for finding in judge_cores(Cores(4, 4, 4, 4, 3.0))] == ["cores", "load"]
    assert {finding.check for finding in check_machine(Subject(None, (), 0.0))} >= {"memory", "cores"}


# Model files


@pytest.mark.parametrize(
    ("name", "model", "same"),
    [
        ("tiny.gguf", "tiny", True),
        ("Tiny.gguf", "tiny.gguf", True),
        ("tiny-2.gguf", "tiny", False),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2:135m", True),
    ],
)
def test_names_of_files(name: str, model: str, same: bool) -> None:
    assert has_name(Path("/models", name), model) == same


def test_files_are_compared_with_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served = write_tiny_llama(tmp_path / "tiny.gguf")
    manifest = build_manifest(served)
    model = ModelIdentity("tiny", manifest.model_digest.hex(), sum(unit.size_bytes for unit in manifest.units))
    (tmp_path / "mine").mkdir()
    write_tiny_llama(tmp_path / "mine" / "tuned.gguf", seed=1)
    write_tiny_llama(tmp_path / "mine" / "unrelated.gguf", num_layers=2)
    (tmp_path / "mine" / "broken.gguf").write_bytes(b"GGUF")

    def statuses(folder: Path, deadline_s: float = time.monotonic() + 60) -> dict[str, Status]:
        found = check_models(Subject(model, (folder,), deadline_s))
        return {Path(finding.seen.split(" ")[0]).name: finding.status for finding in found}

    assert statuses(tmp_path / "mine") == {"tuned.gguf": Status.WARNING}
    (tmp_path / "mine" / "broken.gguf").rename(tmp_path / "mine" / "tiny.gguf")
    assert statuses(tmp_path / "mine") == {"tuned.gguf": Status.WARNING, "tiny.gguf": Status.PROBLEM}
    (tmp_path / "late").mkdir()
    write_tiny_llama(tmp_path / "late" / "tiny.gguf")
    assert statuses(tmp_path / "late", deadline_s=0.0) == {"tiny.gguf": Status.WARNING}
    assert statuses(tmp_path / "late") == {"tiny.gguf": Status.OK}
    assert check_models(Subject(None, (tmp_path,), 0.0)) == []
    assert [finding.status for finding in check_models(Subject(model, (tmp_path / "cache",), 0.0))] == [Status.OK]


def test_another_content_under_one_name_is_a_problem_and_under_another_a_hint() -> None:
    model = ModelIdentity("tiny", "aa" * 32, 1)
    assert judge_digest(Path("tiny.gguf"), model, "aa" * 32, True).status is Status.OK
    assert judge_digest(Path("tiny.gguf"), model, "bb" * 32, True).status is Status.PROBLEM
    assert judge_digest(Path("tuned.gguf"), model, "bb" * 32, False).status is Status.WARNING


# The report


@given(st.lists(FINDINGS))
def test_the_conclusion_is_a_problem_if_and_only_if_there_is_one(findings: list[Finding]) -> None:
    reason = most_likely_reason(findings)
    assert (reason is None) == all(finding.status is not Status.PROBLEM for finding in findings)
    said = conclusion(findings, "h:1")
    assert said.startswith("Most likely reason" if reason else "This machine and the coordinator at h:1 find each other")
    exported = to_json(findings, "h:1", 1.0)
    assert exported["ok"] == (reason is None)
    assert json.loads(json.dumps(exported)) == exported


def test_what_explains_more_comes_first() -> None:
    findings = [Finding("G", check, Status.PROBLEM, check) for check in ("model_file", "discovery", "cluster_name", "multicast")]
    reason = most_likely_reason(findings)
    assert reason is not None
    assert reason.check == "cluster_name"


def test_the_report_for_people_is_grouped_and_ends_with_the_conclusion(dairllm: RunDairllm, cluster: Cluster) -> None:
    result = dairllm("doctor", "--coordinator", cluster.grpc, "--cluster", "client-tests")
    assert result.returncode == 0, result.stdout + result.stderr
    headings = [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert headings[:3] == ["This machine", "Finding each other", "The coordinator"]
    assert f"the coordinator at {cluster.grpc} find each other" in headings[-1]


def test_nobody_at_the_address_is_a_problem_and_not_an_error(dairllm: RunDairllm) -> None:
    result = dairllm("doctor", "--coordinator", f"127.0.0.1:{free_port()}")
    assert (result.returncode, result.stderr) == (1, "")
    assert "Most likely reason: the coordinator: 127.0.0.1:" in result.stdout
    assert dairllm("doctor", "--coordinator", "no spaces").returncode == 2
