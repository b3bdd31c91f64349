"""What the coordinator's word of its shards means to `dairllm doctor`. Pure: facts in, findings out."""

from collections.abc import Collection

from dairllm.client.doctor.probes import hosts_of
from dairllm.mesh.diagnosis import Finding, Status
from dairllm.v1 import cluster_pb2

MEMBERS = "The other machines"

_OK, _WARNING, _PROBLEM = Status.OK, Status.WARNING, Status.PROBLEM


def judge_members(state: cluster_pb2.ClusterState, host_name: str, own_addresses: Collection[str], own_version: str) -> list[Finding]:
    """Whether shards have other versions than the coordinator, or the name that a shard on this machine would take first."""
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
    matters = "a shard that is started here without --name needs some seconds to find out, and takes another name"
    return Finding(MEMBERS, "shard_name", _WARNING, seen, matters, "start the shard here with a --name of its own, or rename a machine")


def shards_to_try(state: cluster_pb2.ClusterState) -> dict[str, tuple[str, ...]]:
    """Names and addresses of shards; loopback addresses mean something else on every machine and are left out where there are others."""
    wanted = {}
    for shard in state.shards:
        outside = [address for address in shard.addresses if not address.startswith(("127.", "[::1]", "localhost"))]
        wanted[shard.name] = tuple(outside or shard.addresses)
    return wanted


_SEEN_ADVICE = {
    cluster_pb2.SEEN_SHARD_PHASE_INVITED: "wait some seconds; if it stays so, run `dairllm doctor --coordinator HOST:PORT` on that machine",
    cluster_pb2.SEEN_SHARD_PHASE_UNREACHABLE: (
        "allow incoming TCP connections to its port in that machine's firewall (dairllm-shard --port gives it one that stays)"
    ),
    cluster_pb2.SEEN_SHARD_PHASE_REFUSED: "if it is to help here, start it without --coordinator, or with this coordinator's address",
    cluster_pb2.SEEN_SHARD_PHASE_OTHER_CLUSTER: "if it is to help here, start it with this cluster's --cluster NAME",
    cluster_pb2.SEEN_SHARD_PHASE_OTHER_PROTOCOL: "install the same version on all machines",
}


def judge_seen(state: cluster_pb2.ClusterState, own_addresses: Collection[str]) -> list[Finding]:
    """Shards that the coordinator hears and that are no members: a problem where it is this machine's own."""
    return [_seen(shard, any(host in own_addresses for host in hosts_of(shard.addresses))) for shard in state.seen]


def _seen(shard: cluster_pb2.SeenShard, is_here: bool) -> Finding:
    who = f"shard {shard.name!r}" if shard.name else "a shard without a name"
    where = "of this machine" if is_here else f"at {' or '.join(shard.addresses)}"
    status = _PROBLEM if is_here and shard.phase != cluster_pb2.SEEN_SHARD_PHASE_INVITED else _WARNING
    matters = "it computes nothing for this cluster"
    return Finding(MEMBERS, "seen_shard", status, f"{who} {where} is no member: {shard.reason}", matters, _SEEN_ADVICE.get(shard.phase, ""))
