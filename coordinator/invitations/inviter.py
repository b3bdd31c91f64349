"""Hears the announcements of shards and calls those that `seen_shards` chooses."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

import grpc

from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.invitations import seen_shards as on
from dairllm.coordinator.invitations.seen_shards import InviteShard, SeenShard, SeenShards
from dairllm.coordinator.membership.reachability import Place, addresses_from, advertised
from dairllm.mesh.addresses import parse_address
from dairllm.mesh.channels import dial_each, error_from_rpc
from dairllm.mesh.discovery.browsers import ShardBrowser
from dairllm.mesh.discovery.records import DiscoveredShard
from dairllm.mesh.errors import DairllmError, InvalidRequest, MembershipRefused, Unsupported
from dairllm.mesh.telemetry import fields
from dairllm.v1 import shard_pb2, shard_pb2_grpc

TICK_S = 0.25
DIAL_S = 4.0
CALL_S = 3.0
MAX_REASON_CHARACTERS = 300

logger = logging.getLogger(__name__)


class Inviter:
    """member_ids: under which ids the present members announce themselves. own_hosts: addresses of this machine where its gRPC port is."""

    def __init__(
        self, config: ClusterConfig, member_ids: Callable[[], frozenset[str]], own_hosts: Callable[[], Collection[str]], grpc_port: int
    ) -> None:
        self._config = config
        self._member_ids = member_ids
        self._own_hosts = own_hosts
        self._grpc_port = grpc_port
        self.browser = ShardBrowser(self._saw, self._lost)
        self._seen = SeenShards(config.cluster_hash, config.protocol_major, config.protocol_minor)
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled, while `browser` listens."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                self._handle(on.MembersKnown(self._member_ids()))
        finally:
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    def listed(self) -> tuple[SeenShard, ...]:
        return self._seen.listed(self._member_ids())

    def _saw(self, key: str, shard: DiscoveredShard) -> None:
        self._handle(on.ShardSeen(key, shard))

    def _lost(self, key: str) -> None:
        self._handle(on.ShardGone(key))

    def _handle(self, event: on.Event) -> None:
        for action in self._seen.handle(event, asyncio.get_running_loop().time()):
            call = asyncio.create_task(self._call(action), name="invite-shard")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, action: InviteShard) -> None:
        shard = action.shard
        outcome = await self._outcome(action)
        said = {"name": shard.name, "addresses": ", ".join(shard.addresses), "outcome": getattr(outcome, "reason", "accepted")}
        logger.debug("a shard that has not joined was invited", extra=fields(**said))
        self._handle(outcome)

    async def _outcome(self, action: InviteShard) -> on.Event:
        key, addresses = action.key, action.shard.addresses
        try:
            async with contextlib.aclosing(dial_each(addresses, DIAL_S)) as connected:
                async for address, channel in connected:
                    try:
                        await self._invite(channel, addresses, address)
                    finally:
                        await channel.close()
                    return on.InviteAccepted(key)
        except (MembershipRefused, InvalidRequest, Unsupported) as error:
            return on.InviteRefused(key, f"it refuses the coordinator's invitation: {_bounded(str(error))}")
        except DairllmError as error:
            return on.InviteFailed(key, f"it announces itself, but the coordinator's call fails: {_bounded(str(error))}")
        silent = f"it announces itself, but does not answer the coordinator's call at {' or '.join(addresses)}"
        return on.InviteFailed(key, f"{silent}: its firewall or the network lets no connection through to it")

    async def _invite(self, channel: grpc.aio.Channel, addresses: Collection[str], answered: str) -> None:
        config = self._config
        request = shard_pb2.InviteRequest(
            cluster_hash=config.cluster_hash,
            protocol_major=config.protocol_major,
            protocol_minor=config.protocol_minor,
            coordinator_id=config.coordinator_id,
            addresses=self._own_addresses(Place(tuple(addresses), parse_address(answered).host)),
        )
        try:
            await shard_pb2_grpc.ShardServiceStub(channel).Invite(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, f"the shard at {answered}") from error

    def _own_addresses(self, shard: Place) -> tuple[str, ...]:
        """Asked anew for each call: a machine may have other addresses by then."""
        hosts = self._own_hosts()
        own = Place(advertised(hosts, self._grpc_port), "127.0.0.1")
        return addresses_from(shard, own, frozenset(hosts))


def _bounded(words: str) -> str:
    """What another machine says, on one line."""
    return "".join(c if c.isprintable() else " " for c in words)[:MAX_REASON_CHARACTERS]
