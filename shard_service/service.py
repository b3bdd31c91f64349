"""The shard process put together: one event loop for everything that waits, one thread that computes, a few that load."""

import asyncio
import logging
import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from dairllm.kernels_pyx import BLOCK_FORMATS, STAGE_FEATURES, get_num_threads, optimization_info, set_num_threads
from dairllm.mesh.addresses import Address, parse_address
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.cache_types import CACHE_FEATURES
from dairllm.mesh.channels import add_standard_services, bind, create_server
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery.announcer import Announcer
from dairllm.mesh.discovery.browsers import Browser
from dairllm.mesh.discovery.presence import Presence
from dairllm.mesh.discovery.records import Announcement, Role, ShardState
from dairllm.mesh.errors import DairllmError, InvalidRequest, InvalidSetting, NameTaken
from dairllm.mesh.interfaces import announced_addresses, real_interface_addresses
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from dairllm.mesh.ready_file import remove_ready_file, write_ready_file
from dairllm.mesh.settings import format_size
from dairllm.mesh.shard_names import next_shard_name
from dairllm.mesh.system_memory import require_budget
from dairllm.mesh.telemetry import fields
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.memory import EXPERTS_FEATURE, STREAMED_FEATURE
from dairllm.shard_service.epochs.stage_host import Identity, StageHost
from dairllm.shard_service.machine.memory import MemoryBudget
from dairllm.shard_service.machine.probe import Speed, cpu_model, measure_again, measure_or_recall, probe_path, recall, scaled
from dairllm.shard_service.machine.standby import machine_is_quiet, measure_while_idle
from dairllm.shard_service.membership.invitations import Standing, check_invitation, read_invitation
from dairllm.shard_service.membership.joiner import Joiner
from dairllm.shard_service.servicers import RingServicer, ShardServicer
from dairllm.shard_service.settings import ShardSettings
from dairllm.shard_service.weights.disk_cache import WeightsCache
from dairllm.shard_service.weights.servicer import WeightsServicer
from dairllm.v1 import cluster_pb2, ring_pb2_grpc, shard_pb2, shard_pb2_grpc, weights_pb2_grpc

SERVICES = ("dairllm.v1.RingService", "dairllm.v1.ShardService", "dairllm.v1.WeightsService")
EVERY_INTERFACE = "0.0.0.0"
DRAIN_DEADLINE_S = 60.0
_STOP_GRACE_S = 0.5
NAME_ATTEMPTS = 3
"""With pauses of 2 and 4 s between them: longer than a lease."""

log = logging.getLogger(__name__)


async def run_shard(settings: ShardSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set or the coordinator asks the shard to leave, and it has handed over its part.

    Raises InvalidSetting if it can't begin.
    """
    shard = Shard(settings)
    async with AsyncExitStack() as stack:
        await shard.start(stack)
        joining = asyncio.create_task(shard.joiner.run(), name="joiner")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        asked = asyncio.create_task(shard.leaving.asked(), name="drain-request")
        try:
            await asyncio.wait({joining, stopping, asked}, return_when=asyncio.FIRST_COMPLETED)
            if joining.done():
                joining.result()
            await shard.hand_over()
            await shard.joiner.leave("the shard was told to stop")
            shard.host.shut_down()
        finally:
            for task in (joining, stopping, asked):
                task.cancel()
            await asyncio.gather(joining, stopping, asked, return_exceptions=True)


class Leaving:
    """Whether the shard was asked to leave, and whether it may."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._released = asyncio.Event()
        self.reason = "the shard was told to stop"

    def ask(self, reason: str) -> None:
        self.reason = reason or self.reason
        self._asked.set()

    def allow(self) -> None:
        self._released.set()
        self._asked.set()

    async def asked(self) -> None:
        await self._asked.wait()

    async def allowed(self) -> None:
        await self._released.wait()


class Shard:
    """A `lease.OrderTaker`: what the coordinator says goes to the host, and the shard speaks for it."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._budget = MemoryBudget(settings.budget_bytes)
        self._identity = Identity(settings.name, uuid.uuid4().hex, cluster_hash(settings.cluster))
        self._announced_id = secrets.token_hex(8)
        self._announced_addresses: tuple[str, ...] = ()
        self._coordinator_id = ""
        self._speed = Speed(0.0, 0.0, False)
        self._configuring: asyncio.Task[None] | None = None
        self._port = 0
        self.leaving = Leaving()
        self._cache = WeightsCache(cache_folder() / "units", settings.weights_cache_bytes) if settings.weights_cache_bytes else None
        self.host = StageHost(
            self._identity,
            self._budget,
            settings.model_dirs,
            self._send,
            lambda: self.joiner.coordinator_addresses,
            self._cache,
            direct_weights=settings.direct_weights,
        )
        self._browser = None if settings.coordinator else Browser(self._identity.cluster_hash)
        self._told = str(parse_address(settings.coordinator)) if settings.coordinator else None
        self._announcer: Announcer | None = None
        self._names_taken = 0
        self.joiner = Joiner(self._told, self._browser, self._hello, self, self._tell_state, self._refused)

    async def start(self, stack: AsyncExitStack) -> None:
        """Everything but joining. What was started ends with the stack."""
        stack.push_async_callback(self.host.close)
        stack.callback(lambda: self._configuring and self._configuring.cancel())
        if self._settings.threads is not None:
            set_num_threads(self._settings.threads)
        await self._start_server(stack)
        if self._settings.ready_file is not None:
            self._write_ready_file(self._settings.ready_file)
            stack.callback(remove_ready_file, self._settings.ready_file)
        self._speed = await self._in_compute_thread(self._measure)
        standing_by = asyncio.create_task(self._stand_by(), name="standby")
        stack.callback(standing_by.cancel)
        if self._settings.discovery:
            self._announced_addresses = await announced_addresses(self._settings.host or EVERY_INTERFACE)
            self._announcer = Announcer(self._announcement())
            await stack.enter_async_context(Presence(self._announcer, *([self._browser] if self._browser is not None else [])))
        log.info("shard started", extra=fields(name=self._identity.name, port=self._port, memory=format_size(self._budget.total_bytes)))

    def _write_ready_file(self, path: Path) -> None:
        host = self._settings.host
        address = Address("127.0.0.1" if host is None or host in (EVERY_INTERFACE, "::") else host, self._port)
        facts = {"pid": os.getpid(), "grpc": str(address), "name": self._identity.name, "boot_id": self._identity.boot_id}
        write_ready_file(path, facts)

    async def hand_over(self) -> None:
        """Stay a member until others have taken over this shard's part: until it is released, the coordinator is gone, or the deadline."""
        if not self.joiner.is_member:
            return
        log.info(
            "leaving the cluster as soon as others have taken over; told once more, it ends at once",
            extra=fields(reason=self.leaving.reason),
        )
        self._send(cluster_pb2.JoinRequest(leaving=cluster_pb2.Leaving(reason=self.leaving.reason, drain=True)))
        ends = {asyncio.create_task(self.leaving.allowed()), asyncio.create_task(self.joiner.lease_ended())}
        done, pending = await asyncio.wait(ends, timeout=DRAIN_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            log.warning("nobody has taken over within %g s; it ends now", DRAIN_DEADLINE_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    # lease.OrderTaker

    def welcomed(self, welcome: cluster_pb2.Welcome) -> None:
        if self._coordinator_id not in ("", welcome.coordinator_id):
            self.host.end_epoch()
        self._coordinator_id = welcome.coordinator_id

    def assign(self, message: cluster_pb2.Assignment) -> None:
        self.host.assign(message)

    def activate(self, message: cluster_pb2.ActivateStage) -> None:
        self.host.activate(message)

    def release(self, message: cluster_pb2.Release) -> None:
        self.host.release(message)
        if message.leave:
            self.leaving.allow()

    def drain(self, message: cluster_pb2.Drain) -> None:
        self.leaving.ask(message.reason)

    def configure(self, message: cluster_pb2.Configure) -> None:
        self._configuring = asyncio.create_task(self._configure(message, self._configuring), name="configure")

    def prove(self, message: cluster_pb2.Prove) -> None:
        self.host.prove(message)

    def usage(self) -> cluster_pb2.ShardUsage:
        return self.host.usage()

    def work(self) -> cluster_pb2.ShardWork:
        return self.host.work()

    # Its parts.

    def _send(self, request: cluster_pb2.JoinRequest) -> None:
        self.joiner.send(request)

    async def _start_server(self, stack: AsyncExitStack) -> None:
        server = create_server()
        ring_pb2_grpc.add_RingServiceServicer_to_server(RingServicer(self.host), server)
        shard_pb2_grpc.add_ShardServiceServicer_to_server(ShardServicer(self.host, self._stats, self._invited), server)
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(
            WeightsServicer(self.host.find_unit, self._settings.model_dirs, self._cache, self.host.loader_threads), server
        )
        health = add_standard_services(server, SERVICES)
        host = self._settings.host or EVERY_INTERFACE
        self._port = await bind(server, host, self._settings.port, f"shard {self._identity.name!r}")
        await server.start()
        stack.push_async_callback(server.stop, _STOP_GRACE_S)
        await health.set_serving(True)

    async def _configure(self, message: cluster_pb2.Configure, before: "asyncio.Task[None] | None") -> None:
        """All of it or, if something makes no sense, nothing; the answer says what is in force."""
        if before is not None:
            await asyncio.wait({before})
        refusal = ""
        try:
            budget = _budget_of(message) if message.HasField("memory_budget_bytes") else self._budget
            if message.HasField("num_threads"):
                num_threads = message.num_threads
                self._speed = await self._in_compute_thread(lambda: self._use_threads(num_threads))
            self._budget = budget
            self.host.limit(budget)
            log.info("configured", extra=fields(memory=format_size(budget.total_bytes), threads=get_num_threads()))
        except InvalidRequest as error:
            refusal = error.message
            log.warning("the limits stay as they are: %s", refusal)
        self._tell_capabilities(refusal)

    def _tell_capabilities(self, refusal: str = "") -> None:
        changed = cluster_pb2.CapabilitiesChanged(capabilities=self._capabilities(), refusal=refusal)
        self._send(cluster_pb2.JoinRequest(capabilities_changed=changed))

    async def _in_compute_thread(self, work: Callable[[], Speed]) -> Speed:
        """Where nothing else runs then."""
        return await asyncio.get_running_loop().run_in_executor(self.host.compute_thread, work)

    async def _stand_by(self) -> None:
        def is_quiet() -> Awaitable[bool]:
            return machine_is_quiet(get_num_threads(), os.cpu_count() or 1)

        def stands_by() -> bool:
            return self.joiner.is_member and self.host.is_idle

        await measure_while_idle(lambda: self._speed, stands_by, is_quiet, self._measure_again)

    async def _measure_again(self) -> None:
        """What is noticeably other than before is told."""
        before = self._speed
        self._speed = await self._in_compute_thread(lambda: measure_again(cache_folder(), time.time(), before))
        if self._speed.differs_from(before.decode_s_per_byte):
            self._tell_capabilities()

    def _use_threads(self, num_threads: int) -> Speed:
        """In the compute thread, where nothing else runs. Measuring takes a second, which running answers are not made to wait."""
        before = get_num_threads()
        try:
            set_num_threads(num_threads)
        except ValueError as error:
            raise InvalidRequest(str(error), "num_threads") from error
        if self.host.assignment is None:
            return self._measure()
        known = recall(probe_path(cache_folder()), time.time())
        return known or Speed(scaled(self._speed.decode_s_per_byte, before, num_threads), time.time(), False)

    def _measure(self) -> Speed:
        return measure_or_recall(cache_folder(), time.time())

    def _capabilities(self) -> cluster_pb2.ShardCapabilities:
        return cluster_pb2.ShardCapabilities(
            memory_budget_bytes=self._budget.total_bytes,
            reserved_bytes=self._budget.reserve.size_bytes,
            process_bytes=self._budget.reserve.process_bytes,
            num_threads=get_num_threads(),
            isa=str(optimization_info()["isa"]),
            cpu_model=cpu_model(),
            decode_s_per_byte=self._speed.decode_s_per_byte,
            block_formats=list(BLOCK_FORMATS),
            features=(*STAGE_FEATURES, *CACHE_FEATURES, ARITHMETIC_FEATURE, STREAMED_FEATURE, EXPERTS_FEATURE),
        )

    def _addresses(self) -> list[str]:
        if self._settings.host not in (None, EVERY_INTERFACE, "::"):
            return [str(Address(self._settings.host, self._port))]
        return [str(Address(host, self._port)) for host in real_interface_addresses() or ["127.0.0.1"]]

    def _hello(self) -> cluster_pb2.Hello:
        return cluster_pb2.Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            software_version=software_version(),
            cluster_hash=self._identity.cluster_hash,
            name=self._identity.name,
            boot_id=self._identity.boot_id,
            addresses=self._addresses(),
            capabilities=self._capabilities(),
            held=self.host.held_units(),
            announced_id=self._announced_id if self._announcer is not None else "",
        )

    def _announcement(self) -> Announcement:
        state = ShardState.JOINED if self.joiner.is_member else ShardState.LOOKING
        return Announcement(
            self._announced_id,
            self._identity.cluster_hash,
            self._port,
            self._announced_addresses,
            role=Role.SHARD,
            name=self._identity.name,
            state=state,
        )

    def _tell_state(self) -> None:
        if self._announcer is not None:
            self._announcer.announce(self._announcement())

    def _refused(self, error: DairllmError) -> bool:
        """A name that nobody chose gives way: hosts may have equal names, and one host several shards. Not at once: whoever had the name
        may be this shard's predecessor, whose lease has not ended."""
        if self._settings.is_named or not isinstance(error, NameTaken):
            return False
        self._names_taken += 1
        number, attempts = divmod(self._names_taken, NAME_ATTEMPTS)
        if attempts != 0:
            return False
        self._identity.name = next_shard_name(self._settings.name, number + 1)
        log.info("the name is taken, so it takes another", extra=fields(name=self._identity.name))
        self._tell_state()
        return True

    def _invited(self, request: shard_pb2.InviteRequest) -> shard_pb2.InviteResponse:
        inviting = read_invitation(request)
        is_member = self.joiner.is_member
        check_invitation(inviting, Standing(self._identity.cluster_hash, self._told, self._coordinator_id if is_member else ""))
        if self._browser is not None and not is_member:
            log.info("invited by a coordinator", extra=fields(addresses=", ".join(inviting.addresses)))
            self._browser.suggest(inviting)
        return shard_pb2.InviteResponse(is_member=is_member)

    def _stats(self) -> shard_pb2.GetStatsResponse:
        assignment = self.host.assignment
        span = range(0) if assignment is None else assignment.span
        return shard_pb2.GetStatsResponse(
            name=self._identity.name,
            epoch=0 if assignment is None else assignment.epoch,
            first_unit=span.start,
            end_unit=span.stop,
            capabilities=self._capabilities(),
            usage=self.host.usage(),
            coordinator=self._coordinator_id if self.joiner.is_member else "",
        )


def _budget_of(message: cluster_pb2.Configure) -> MemoryBudget:
    try:
        return MemoryBudget(require_budget(message.memory_budget_bytes))
    except InvalidSetting as error:
        raise InvalidRequest(error.message, "memory_budget_bytes") from error
