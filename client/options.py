"""Options that several commands of `dairllm` share, and how the coordinator is found."""

import asyncio
from typing import Annotated

import typer

from dairllm.client.client import Client
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT, Address, parse_address
from dairllm.mesh.cluster_name import DEFAULT_CLUSTER_NAME, cluster_hash
from dairllm.mesh.discovery import find_coordinator
from dairllm.mesh.errors import PeerUnreachable

DISCOVERY_TIMEOUT_S = 2.0
"""An announcement on a local network comes within some tens of milliseconds; a busy machine may need longer."""

CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Where the coordinator's gRPC port is. Default: found by mDNS on the local network, else this machine's default port.",
    ),
]
ClusterOption = Annotated[
    str, typer.Option("--cluster", metavar="NAME", help="Name of the cluster, as given to the coordinator; only used to find it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]

DEFAULT_CLUSTER = DEFAULT_CLUSTER_NAME


def connect(coordinator: str | None, cluster: str) -> Client:
    """A client of the coordinator that is named, or found. Raises InvalidSetting for a malformed address."""
    return Client(coordinator_address(coordinator, cluster))


def coordinator_address(coordinator: str | None, cluster: str) -> str:
    """Address to dial: the one given, else one announced by mDNS for this cluster, else the default port of this machine."""
    if coordinator is not None:
        return str(parse_address(coordinator, DEFAULT_GRPC_PORT))
    try:
        found = asyncio.run(find_coordinator(cluster_hash(cluster), timeout_s=DISCOVERY_TIMEOUT_S))
    except PeerUnreachable:
        return str(Address("127.0.0.1", DEFAULT_GRPC_PORT))
    return found
