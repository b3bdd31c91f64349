"""What the observations of `dairllm doctor` mean: of this machine and of the coordinator. Pure: facts in, findings out."""

from collections.abc import Sequence

from dairllm.client.doctor.discovery_findings import Wanted, judge_wrong_cluster
from dairllm.client.doctor.probes import CoordinatorAnswer, InterfaceSeen, NoAnswer, Outcome, PortSeen, Reach
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT
from dairllm.mesh.diagnosis import Finding, Status
from dairllm.mesh.message_json import enum_to_json
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.v1 import cluster_pb2

MACHINE, COORDINATOR = "This machine", "The coordinator"
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
        findings.append(judge_wrong_cluster(wanted, seen))
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
