"""Options that several commands of `dairllm` share, and how the coordinator is found."""

import asyncio
import contextlib
from typing import Annotated

import typer

from dairllm.client.client import Client
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT, Address, parse_address
from dairllm.mesh.channels import dial
from dairllm.mesh.cluster_name import DEFAULT_CLUSTER_NAME, cluster_hash
from dairllm.mesh.discovery.browsers import Browser
from dairllm.mesh.errors import PeerUnreachable

DIAL_TIMEOUT_S = 1.0
DISCOVERY_TIMEOUT_S = 3.0
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
    """A client of the coordinator that is named, or found. Raises InvalidSetting, PeerUnreachable."""
    return Client(coordinator_address(coordinator, cluster))


def coordinator_address(coordinator: str | None, cluster: str) -> str:
    """Address to dial: the one given, else one announced by mDNS for this cluster, else the default port of this machine.

    Raises PeerUnreachable if none is given and none answers.
    """
    if coordinator is not None:
        return str(parse_address(coordinator, DEFAULT_GRPC_PORT))
    return asyncio.run(_find(cluster))


async def _find(cluster: str) -> str:
    here = str(Address("127.0.0.1", DEFAULT_GRPC_PORT))
    found = await _find_by_mdns(cluster_hash(cluster))
    if found is None and not await _answers(here):
        raise PeerUnreachable(
            f"no coordinator of cluster {cluster!r} was found by mDNS within {DISCOVERY_TIMEOUT_S:g} s, and none answers at {here}; "
            f"expected --coordinator HOST:PORT, or a running dairllm-coordinator"
        )
    return found or here


async def _find_by_mdns(wanted_cluster: str) -> str | None:
    """The first announced address that answers; None if there is none in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCOVERY_TIMEOUT_S), Browser(wanted_cluster) as browser:
            async for coordinator in browser.found():
                for address in coordinator.addresses:
                    if await _answers(address):
                        return address
    return None


async def _answers(address: str) -> bool:
    try:
        channel = await dial([address], DIAL_TIMEOUT_S, "the coordinator")
    except PeerUnreachable:
        return False
    await channel.close()
    return True
