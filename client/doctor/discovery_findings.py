"""What the observations of `dairllm doctor` say about finding each other. Pure: facts in, findings out."""

from collections.abc import Sequence
from dataclasses import dataclass

from dairllm.client.doctor.asking import Answered
from dairllm.client.doctor.multicast import MulticastSeen, heard_others
from dairllm.client.doctor.probes import Browsed, CoordinatorAnswer, NoAnswer, hosts_of
from dairllm.mesh.diagnosis import Finding, Status

DISCOVERY = "Finding each other"

_LET_PASS = (
    "let multicast pass: switch off 'client isolation' and 'multicast filtering' on access points, "
    "give IGMP snooping a querier, put both machines into one VLAN"
)
_OK, _WARNING, _PROBLEM = Status.OK, Status.WARNING, Status.PROBLEM


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked about. coordinator: the address that was given, None if it is to be found."""

    cluster: str
    cluster_hash: str
    coordinator: str | None


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
    wanted: Wanted,
    browsed: Browsed,
    multicast: Sequence[MulticastSeen],
    answered: Answered,
    answer: CoordinatorAnswer | NoAnswer | None,
    direct: bool | None,
) -> list[Finding]:
    """What can be said of both directions.

    answer: of the coordinator that was examined. direct: whether the mDNS responder of its machine answers when asked alone; None if it
    was not tried, or it is this machine.
    """
    if browsed.own:
        return [_found(wanted, browsed), *_ambiguity(wanted, browsed), *_one_way_from(browsed, multicast, answered, direct)]
    if wanted.coordinator is None and not isinstance(answer, CoordinatorAnswer):
        return [_foreign_only(wanted, browsed) if browsed.foreign else _nobody_found(wanted, heard_others(multicast))]
    if not isinstance(answer, CoordinatorAnswer) or _announced_at(browsed, answer.address):
        return []
    if direct is not None and set(hosts_of([answer.address])) & answered.hosts:
        return [_one_way_to(answer.address)]
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


def _one_way_to(address: str) -> Finding:
    seen = f"the coordinator at {address} hears what this machine sends by multicast, but nothing that it sends by multicast arrives here"
    matters = "a shard here can't find it, but is found and invited by it within seconds; `dairllm` commands find nothing"
    advice = f"give `dairllm` commands --coordinator {address}; or {_LET_PASS}"
    return Finding(DISCOVERY, "multicast_one_way", _WARNING, seen, matters, advice)


def _one_way_from(browsed: Browsed, multicast: Sequence[MulticastSeen], answered: Answered, direct: bool | None) -> list[Finding]:
    """Only where the machine's responder works, so that its silence is the network's doing."""
    hosts = {host for coordinator in browsed.own for host in hosts_of(coordinator.addresses)}
    if not direct or hosts & answered.hosts or not hosts & set(heard_others(multicast)):
        return []
    seen = "the coordinator is heard by multicast, but what this machine sends by multicast does not arrive there"
    matters = (
        "a shard here finds it by what it announces every few seconds; but it does not see the shards here, "
        "and can't say why one has not joined"
    )
    return [Finding(DISCOVERY, "multicast_one_way", _WARNING, seen, matters, f"nothing has to be done; to mend it, {_LET_PASS}")]


def _foreign_only(wanted: Wanted, browsed: Browsed) -> Finding:
    others = ", ".join(f"{' or '.join(other.addresses)} (hash {other.cluster_hash})" for other in browsed.foreign)
    return judge_wrong_cluster(wanted, f"a coordinator of another cluster announces itself at {others}")


def judge_wrong_cluster(wanted: Wanted, seen: str) -> Finding:
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
    return Finding(DISCOVERY, "multicast_blocked", _PROBLEM, seen, matters, f"{by_name}; or {_LET_PASS}")
