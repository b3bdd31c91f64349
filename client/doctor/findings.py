"""What the observations of `dairllm doctor` mean. Pure: facts in, findings out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dairllm.client.doctor.multicast import MulticastSeen, heard_others
from dairllm.client.doctor.probes import Browsed, CoordinatorAnswer, InterfaceSeen, NoAnswer, Outcome, PortSeen, Reach, hosts_of
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT
from dairllm.mesh.diagnosis import Finding, Status
from dairllm.mesh.message_json import enum_to_json
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.v1 import cluster_pb2

MACHINE, DISCOVERY, COORDINATOR, MEMBERS = "This machine", "Finding each other", "The coordinator", "The other machines"
CLOCK_TOLERANCE_S = 2.0

_OK, _WARNING, _PROBLEM = Status.OK, Status.WARNING, Status.PROBLEM

_SEEN = {
    Outcome.OPEN: "{} can be reached",
    Outcome.REFUSED: "{} refuses connections: the machine is there, but nothing listens on that port (or its firewall rejects)",
    Outcome.NO_ANSWER: "{} does not answer at all: a firewall drops the packets, or the machine is off",
    Outcome.NO_ROUTE: "there is no route to {}: it is on a network that this machine is not connected to, or a firewall says so",
    Outcome.ABSENT: "no machine with the address of {} is on the local network: it is off, or it has another address now",
    Outcome.FORBIDDEN: "this machine's own firewall forbids connections to {}",
    Outcome.NO_SUCH_HOST: "the host name of {} is unknown to this machine",
}
_ADVICE = {
    Outcome.REFUSED: "start {0} there, or look up its port in its log ('shards join at port …') and open it in that machine's firewall",
    Outcome.NO_ANSWER: "allow incoming TCP connections to the port of {1} in that machine's firewall, and check that it is on",
    Outcome.NO_ROUTE: "connect both machines to one network or a common tunnel, or use another of its addresses",
    Outcome.ABSENT: "switch the machine on, or find out its present address (`ip address` there)",
    Outcome.FORBIDDEN: "allow outgoing TCP connections to {1} in this machine's firewall",
    Outcome.NO_SUCH_HOST: "use the machine's IP address, or enter the name into DNS or /etc/hosts",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked about. coordinator: the address that was given, None if it is to be found."""

    cluster: str
    cluster_hash: str
    coordinator: str | None


def judge_interfaces(interfaces: Sequence[InterfaceSeen]) -> list[Finding]:
    used = [f"{entry.name} ({', '.join(entry.addresses)})" for entry in interfaces if not entry.skipped]
    skipped = [f"{entry.name}: {entry.skipped}" for entry in interfaces if entry.skipped]
    findings = [Finding(MACHINE, "interfaces", _OK, f"network interfaces in use: {'; '.join(used)}")]
    if not used:
        findings = [
            Finding(
                *(MACHINE, "interfaces", _PROBLEM, "no network interface of this machine has an address that others could reach"),
                *("without one it can only work with processes on itself", "plug in the cable or join the wireless network"),
            )
        ]
    if skipped:
        findings.append(Finding(MACHINE, "skipped_interfaces", _OK, f"not used: {'; '.join(skipped)}"))
    return findings


def judge_port(seen: PortSeen) -> Finding:
    if seen.is_free:
        return Finding(MACHINE, "port", _OK, f"port {seen.port} is free ({seen.purpose})")
    holder = f"by `{seen.holder}`" if seen.holder else "by a program of another user"
    if "dairllm" in seen.holder:
        return Finding(MACHINE, "port", _OK, f"port {seen.port} is in use {holder}")
    return Finding(
        *(MACHINE, "port", _WARNING, f"port {seen.port} is in use {holder}"),
        *(f"it is the default of {seen.purpose}", "only if that is to run here: end the other program, or give another port"),
    )


def judge_multicast(seen: MulticastSeen) -> Finding:
    where = f"{seen.interface} ({seen.address})"
    advice = (
        "allow UDP port 5353 and the group 224.0.0.251 in this machine's firewall, or name the coordinator with --coordinator HOST:PORT"
    )
    if seen.error:
        text = f"multicast can't be used on {where}: {seen.error}"
        return Finding(DISCOVERY, "multicast", _PROBLEM, text, "machines on that network can't find each other by themselves", advice)
    if not seen.heard_itself:
        text = f"this machine does not hear its own multicast on {where}"
        return Finding(DISCOVERY, "multicast", _PROBLEM, text, "something on this machine, most likely its firewall, drops it", advice)
    heard = f"and heard {', '.join(seen.others)}" if seen.others else "but heard no other machine"
    return Finding(DISCOVERY, "multicast", _OK, f"multicast on {where} works as far as this machine goes, {heard}")


def judge_discovery(
    wanted: Wanted, browsed: Browsed, multicast: Sequence[MulticastSeen], answer: CoordinatorAnswer | NoAnswer | None, direct: bool | None
) -> list[Finding]:
    """answer: of the coordinator at the address that was given or is this machine's default. direct: whether the mDNS responder
    of its machine answers when asked alone; None if it was not tried."""
    if browsed.own:
        return [_found(wanted, browsed), *_ambiguity(wanted, browsed)]
    if wanted.coordinator is None and not isinstance(answer, CoordinatorAnswer):
        return [_foreign_only(wanted, browsed) if browsed.foreign else _nobody_found(wanted, heard_others(multicast))]
    if not isinstance(answer, CoordinatorAnswer) or _announced_at(browsed, answer.address):
        return []
    return [_unheard(answer.address, direct, heard_others(multicast))]


def _found(wanted: Wanted, browsed: Browsed) -> Finding:
    places = "; ".join(" or ".join(coordinator.addresses) for coordinator in browsed.own)
    return Finding(DISCOVERY, "discovery", _OK, f"a coordinator of cluster {wanted.cluster!r} announces itself at {places}")


def _ambiguity(wanted: Wanted, browsed: Browsed) -> list[Finding]:
    if len(browsed.own) == 1:
        return []
    text = f"{len(browsed.own)} coordinators of cluster {wanted.cluster!r} announce themselves"
    matters = "shards join whichever they find first; one may be the record of a process that was killed"
    return [
        Finding(
            *(
                DISCOVERY,
                "ambiguity",
                _WARNING,
                text,
                matters,
            ),
            "give each cluster a name of its own (--cluster), or stop one of them",
        )
    ]


def _foreign_only(wanted: Wanted, browsed: Browsed) -> Finding:
    others = ", ".join(f"{' or '.join(other.addresses)} (hash {other.cluster_hash})" for other in browsed.foreign)
    return _wrong_cluster(wanted, f"a coordinator of another cluster announces itself at {others}")


def _wrong_cluster(wanted: Wanted, seen: str) -> Finding:
    return Finding(
        *(DISCOVERY, "cluster_name", _PROBLEM, f"{seen}; the cluster asked for is {wanted.cluster!r} (hash {wanted.cluster_hash})"),
        "machines of different clusters do not work together; only hashes of the names are sent, so the other name can't be shown",
        "use the same --cluster NAME on both machines: it is in the command line or the settings of the coordinator (default: dairllm)",
    )


def _nobody_found(wanted: Wanted, others: Sequence[str]) -> Finding:
    seen = f"no coordinator of any cluster announces itself (looked for {wanted.cluster!r})"
    if others:
        matters = f"multicast itself works: {', '.join(others)} was heard; so the coordinator does not run, or not on this network"
        advice = "start dairllm-coordinator (without --no-discovery) on a machine of this network, or name it with --coordinator HOST:PORT"
    else:
        matters = "and no other machine was heard either: nobody else is there, or the network does not pass multicast on"
        advice = "run this again with --coordinator HOST:PORT (the port is 7117 unless chosen otherwise), which tells these cases apart"
    return Finding(DISCOVERY, "discovery", _PROBLEM, seen, matters, advice)


def _announced_at(browsed: Browsed, address: str) -> bool:
    return any(address in coordinator.addresses for coordinator in browsed.foreign)


def _unheard(address: str, direct: bool | None, others: Sequence[str]) -> Finding:
    by_name = f"start dairllm-shard and dairllm with --coordinator {address} (or DAIRLLM_COORDINATOR={address})"
    if direct is None:
        seen = f"the coordinator at {address} does not announce itself"
        return Finding(DISCOVERY, "discovery", _WARNING, seen, "it runs on this machine, most likely with --no-discovery", by_name)
    if not direct:
        seen = f"the coordinator at {address} works, but its announcements are not heard, and it does not answer mDNS questions"
        matters = "it was started with --no-discovery, or a firewall blocks UDP port 5353"
        return Finding(DISCOVERY, "discovery", _WARNING, seen, matters, by_name)
    seen = f"the coordinator at {address} answers mDNS questions that are sent to it alone, but nothing that it sends by multicast arrives"
    also = f" (others are heard: {', '.join(others)})" if others else ""
    matters = f"multicast is blocked between the two machines{also}, so that they can't find each other by themselves"
    advice = (
        f"{by_name}; or let multicast pass: switch off 'client isolation' and 'multicast filtering' on access points, "
        f"give IGMP snooping a querier, put both machines into one VLAN"
    )
    return Finding(DISCOVERY, "multicast_blocked", _PROBLEM, seen, matters, advice)


def judge_reach(reaches: Sequence[Reach], who: str, group: str, check: str, announced: Sequence[str] = ()) -> list[Finding]:
    """One of a machine's addresses suffices. announced: other addresses that it might be meant by."""
    open_ones = [reach for reach in reaches if reach.outcome is Outcome.OPEN]
    if not open_ones:
        return [_unreachable(reach, who, group, check, announced) for reach in reaches]
    findings = [Finding(group, check, _OK, f"{who}: {', '.join(reach.address for reach in open_ones)} can be reached")]
    closed = [reach for reach in reaches if reach.outcome is not Outcome.OPEN]
    if closed:
        texts = "; ".join(_SEEN[reach.outcome].format(reach.address) for reach in closed)
        seen = f"{who} has other addresses that do not work from here, which does no harm: {texts}"
        findings.append(Finding(group, f"{check}_other", _OK, seen))
    return findings


def _unreachable(reach: Reach, who: str, group: str, check: str, announced: Sequence[str]) -> Finding:
    program = "dairllm-coordinator" if check == "coordinator_port" else "dairllm-shard"
    advice = _ADVICE[reach.outcome].format(program, reach.address)
    if announced and reach.address not in announced:
        advice = f"use {' or '.join(announced)} instead, where a coordinator of this cluster announces itself; otherwise {advice}"
    seen = f"{who}: {_SEEN[reach.outcome].format(reach.address)}"
    return Finding(group, check, _PROBLEM, seen, "machines of a cluster talk to each other by TCP", advice)


def judge_no_answer(failure: NoAnswer) -> Finding:
    if failure.services:
        seen = f"{failure.address} is a gRPC server, but no coordinator of this version: it offers {', '.join(failure.services)}"
    else:
        seen = f"{failure.address} accepts connections, but does not answer as a coordinator ({failure.reason})"
    matters = "another program listens there, or it hangs, or is far older or newer"
    advice = f"check host and port: expected dairllm-coordinator's gRPC port ({DEFAULT_GRPC_PORT} unless --grpc-port says otherwise)"
    return Finding(COORDINATOR, "coordinator_answer", _PROBLEM, seen, matters, advice)


def judge_coordinator(wanted: Wanted, answer: CoordinatorAnswer, own_version: str) -> list[Finding]:
    findings = [_phase(answer)]
    identity = answer.identity
    if identity and identity.cluster_hash and identity.cluster_hash != wanted.cluster_hash:
        seen = f"the coordinator at {answer.address} belongs to another cluster (hash {identity.cluster_hash})"
        findings.append(_wrong_cluster(wanted, seen))
    findings.append(judge_versions(identity, answer.state.software_version or "unknown", own_version))
    if answer.ahead_s is not None:
        findings.append(judge_clock(answer.ahead_s))
    return findings


def _phase(answer: CoordinatorAnswer) -> Finding:
    state = answer.state
    phase = enum_to_json(cluster_pb2.ClusterPhase.DESCRIPTOR, state.phase)
    text = f"the coordinator at {answer.address} answers: {state.model or 'no model'} is {phase}"
    return Finding(COORDINATOR, "coordinator_answer", _OK, f"{text}: {state.reason}" if state.reason else text)


def judge_versions(identity: cluster_pb2.CoordinatorIdentity | None, theirs: str, own_version: str) -> Finding:
    """identity: None if the coordinator does not tell. theirs, own_version: of the software."""
    own = f"protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}, dairllm {own_version}"
    if identity is None:
        seen = f"the coordinator (dairllm {theirs}) does not tell its protocol's version; this machine has {own}"
        return Finding(COORDINATOR, "version", _WARNING, seen, "it is older than this program", "install the same version on all machines")
    major = identity.protocol_major
    seen = f"coordinator: protocol {major}.{identity.protocol_minor}, dairllm {theirs}; this machine: {own}"
    if major != PROTOCOL_MAJOR:
        older = "this machine" if major > PROTOCOL_MAJOR else "the coordinator's machine"
        matters = "they refuse each other, since the first numbers of their protocols differ"
        return Finding(COORDINATOR, "version", _PROBLEM, seen, matters, f"install the newer dairllm on {older}, which has the older one")
    if theirs != own_version:
        matters = "they work together, but each lacks what is new in the other"
        return Finding(COORDINATOR, "version", _WARNING, seen, matters, "install the same version on all machines")
    return Finding(COORDINATOR, "version", _OK, seen)


def judge_clock(ahead_s: float) -> Finding:
    if abs(ahead_s) <= CLOCK_TOLERANCE_S:
        return Finding(COORDINATOR, "clock", _OK, f"the clocks of the two machines differ by {abs(ahead_s):.2f} s")
    seen = f"the coordinator's clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    matters = "only the times in logs and events are hard to compare: nothing else depends on clocks"
    return Finding(COORDINATOR, "clock", _WARNING, seen, matters, "let both machines set their clocks by NTP (`timedatectl set-ntp true`)")


def judge_members(state: cluster_pb2.ClusterState, host_name: str, own_addresses: Collection[str], own_version: str) -> list[Finding]:
    """Whether shards have other versions than the coordinator, or the name that a shard on this machine would take."""
    findings = []
    if not state.shards:
        advice = "start dairllm-shard on the machines that are to help"
        findings.append(Finding(MEMBERS, "members", _WARNING, "no shard has joined the cluster", "nobody computes anything", advice))
    for shard in state.shards:
        if shard.software_version and shard.software_version != own_version:
            seen = f"shard {shard.name!r} has dairllm {shard.software_version}; this machine has {own_version}"
            advice = "install the same version on all machines"
            findings.append(Finding(MEMBERS, "shard_version", _WARNING, seen, "they may lack each other's new abilities", advice))
        if shard.name == host_name:
            findings.append(_same_name(shard, own_addresses))
    return findings


def _same_name(shard: cluster_pb2.ShardState, own_addresses: Collection[str]) -> Finding:
    hosts = hosts_of(shard.addresses)
    if any(host in own_addresses for host in hosts):
        return Finding(MEMBERS, "shard_name", _OK, f"this machine's shard {shard.name!r} is a member")
    seen = f"a shard named {shard.name!r}, like this machine, is a member at {', '.join(shard.addresses)}, which is not this machine"
    matters = "a shard that is started here without --name is refused: 'a living shard has this name'"
    return Finding(MEMBERS, "shard_name", _PROBLEM, seen, matters, "start the shard here with another --name, or rename a machine")


def shards_to_try(state: cluster_pb2.ClusterState) -> dict[str, tuple[str, ...]]:
    """Names and addresses of shards; loopback addresses mean something else on every machine and are left out where there are others."""
    wanted = {}
    for shard in state.shards:
        outside = [address for address in shard.addresses if not address.startswith(("127.", "[::1]", "localhost"))]
        wanted[shard.name] = tuple(outside or shard.addresses)
    return wanted
