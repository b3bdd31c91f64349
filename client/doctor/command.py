"""`dairllm doctor`: why this machine and the coordinator do or do not find each other, in plain words."""

import asyncio
import contextlib
import functools
import json
import socket
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from dairllm.client.doctor import discovery_findings, member_findings
from dairllm.client.doctor import findings as judge
from dairllm.client.doctor.asking import Answered, answers_directly, ask_by_multicast
from dairllm.client.doctor.discovery_findings import Wanted
from dairllm.client.doctor.findings import COORDINATOR
from dairllm.client.doctor.member_findings import MEMBERS
from dairllm.client.doctor.multicast import MulticastSeen, probe_multicast
from dairllm.client.doctor.probes import (
    Browsed,
    CoordinatorAnswer,
    InterfaceSeen,
    NoAnswer,
    Outcome,
    Reach,
    ask_coordinator,
    browse,
    hosts_of,
    local_address,
    own_addresses,
    see_interfaces,
    see_port,
    try_all,
)
from dairllm.client.doctor.report import most_likely_reason, print_report, to_json
from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, JsonOption
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT, parse_address
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.diagnosis import DOCTOR_GROUP, DoctorCheck, Finding, ModelIdentity, Status, Subject
from dairllm.mesh.discovery.announcer import REPEAT_S
from dairllm.mesh.protocol import software_version
from dairllm.mesh.settings import ConfigFile
from dairllm.mesh.telemetry import configure_logging
from dairllm.mesh.terminal import console

EXIT_PROBLEMS = 1
DEADLINE_S = 10.0
LISTEN_S = 2.5
BROWSE_S = REPEAT_S + 0.8
"""Where questions do not arrive, a coordinator is heard when it next announces itself. Ends early once one is found."""
DIRECT_S = 1.2
_CLOSE_S = 0.5
"""Left for the end: writing the report."""
PORTS = {DEFAULT_GRPC_PORT: "dairllm-coordinator --grpc-port", 8080: "dairllm-coordinator --http-port"}
"""Default ports of the coordinator. A shard takes any free one."""


def doctor(
    model_dir: Annotated[
        list[Path] | None, typer.Option(help="Folder with model files to compare with the model that is served; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Find out why this machine and the coordinator do not find each other. Takes up to 10 s; ends with 1 if there are problems."""
    configure_logging("error")
    address = None if coordinator is None else str(parse_address(coordinator, DEFAULT_GRPC_PORT))
    examination = Examination(Wanted(cluster, cluster_hash(cluster), address), tuple(model_dir or ()))
    started_s = time.monotonic()
    findings = asyncio.run(examination.run())
    if as_json:
        print(json.dumps(to_json(findings, examination.address, time.monotonic() - started_s)))
    else:
        print_report(console(), findings, examination.address)
    if most_likely_reason(findings) is not None:
        raise typer.Exit(EXIT_PROBLEMS)


class Examination:
    """All checks, at the same time as far as one does not need the other's result. address: of the coordinator that was examined."""

    def __init__(self, wanted: Wanted, model_dirs: tuple[Path, ...]) -> None:
        self.address = wanted.coordinator
        self._wanted = wanted
        self._model_dirs = model_dirs
        self._own_addresses = own_addresses()
        self._version = software_version()
        self._deadline_s = time.monotonic() + DEADLINE_S - _CLOSE_S

    async def run(self) -> list[Finding]:
        """Findings in the order of the report."""
        interfaces = see_interfaces()
        local = asyncio.create_task(self._plugged_in("machine", None))
        browsing = asyncio.create_task(browse(self._wanted.cluster_hash, BROWSE_S))
        listening = asyncio.create_task(self._listen(interfaces))
        asking = asyncio.create_task(self._ask(interfaces))
        reaches, answer = await self._coordinator(browsing, asking)
        direct = await self._ask_directly(answer)
        browsed, multicast, answered = await browsing, await listening, await asking
        announced = [address for coordinator in browsed.own for address in coordinator.addresses]
        members = await self._members(answer)
        return [
            *judge.judge_interfaces(interfaces),
            *(judge.judge_port(see_port(port, purpose)) for port, purpose in PORTS.items()),
            *await local,
            *(discovery_findings.judge_multicast(entry) for entry in multicast),
            *discovery_findings.judge_discovery(self._wanted, browsed, multicast, answered, answer, direct),
            *judge.judge_reach(reaches, "the coordinator", COORDINATOR, "coordinator_port", announced),
            *self._judge_answer(answer),
            *members,
        ]

    async def _listen(self, interfaces: Sequence[InterfaceSeen]) -> list[MulticastSeen]:
        chosen = _ipv4_addresses(interfaces)
        probes = [probe_multicast(name, address, self._own_addresses, LISTEN_S) for name, address in chosen.items()]
        return list(await asyncio.gather(*probes))

    async def _ask(self, interfaces: Sequence[InterfaceSeen]) -> Answered:
        chosen = _ipv4_addresses(interfaces)
        answers = await asyncio.gather(*(ask_by_multicast(address, self._own_addresses, LISTEN_S) for address in chosen.values()))
        return functools.reduce(Answered.__or__, answers, Answered())

    async def _coordinator(
        self, browsing: "asyncio.Task[Browsed]", asking: "asyncio.Task[Answered]"
    ) -> tuple[tuple[Reach, ...], CoordinatorAnswer | NoAnswer | None]:
        """The coordinator that was named, else the one that is announced, else one that answers a question, else one on this machine's
        default port, if there is any."""
        if self._wanted.coordinator is not None:
            return await self._examine([self._wanted.coordinator])
        own = (await browsing).own or [one for one in (await asking).coordinators if one.cluster_hash == self._wanted.cluster_hash]
        if own:
            return await self._examine([address for coordinator in own for address in coordinator.addresses])
        here = local_address(DEFAULT_GRPC_PORT)
        reaches, answer = await self._examine([here])
        return (reaches, answer) if isinstance(answer, CoordinatorAnswer) else ((), None)

    async def _examine(self, addresses: Sequence[str]) -> tuple[tuple[Reach, ...], CoordinatorAnswer | NoAnswer | None]:
        reaches = await try_all(addresses)
        open_ones = [reach.address for reach in reaches if reach.outcome is Outcome.OPEN]
        if not open_ones:
            return reaches, None
        answers = await asyncio.gather(*(ask_coordinator(address) for address in open_ones))
        answer = next((answer for answer in answers if isinstance(answer, CoordinatorAnswer)), answers[0])
        if isinstance(answer, CoordinatorAnswer):
            self.address = answer.address
        return reaches, answer

    async def _ask_directly(self, answer: CoordinatorAnswer | NoAnswer | None) -> bool | None:
        if not isinstance(answer, CoordinatorAnswer):
            return None
        (host,) = hosts_of([answer.address])
        is_here = host in self._own_addresses or host == "localhost"
        return None if is_here or ":" in host else await answers_directly(host, DIRECT_S)

    def _judge_answer(self, answer: CoordinatorAnswer | NoAnswer | None) -> list[Finding]:
        if isinstance(answer, NoAnswer):
            return [judge.judge_no_answer(answer)]
        return judge.judge_coordinator(self._wanted, answer, self._version) if answer else []

    async def _members(self, answer: CoordinatorAnswer | NoAnswer | None) -> list[Finding]:
        """Shards and models of the cluster, once the coordinator has told of them."""
        if not isinstance(answer, CoordinatorAnswer):
            return []
        state = answer.state
        model = ModelIdentity(state.model, state.model_digest.hex(), state.model_size_bytes) if state.model_digest else None
        models = asyncio.create_task(self._plugged_in("models", model))
        wanted = member_findings.shards_to_try(state)
        reaches = await asyncio.gather(*(try_all(addresses) for addresses in wanted.values()))
        findings = member_findings.judge_members(state, socket.gethostname(), self._own_addresses, self._version)
        for name, tried in zip(wanted, reaches, strict=True):
            findings += judge.judge_reach(tried, f"shard {name!r}", MEMBERS, "shard_port")
        return [*findings, *member_findings.judge_seen(state, self._own_addresses), *await models]

    async def _plugged_in(self, name: str, model: ModelIdentity | None) -> list[Finding]:
        """Checks that other packages bring along."""
        subject = Subject(model, self._model_dirs, self._deadline_s)
        found = await asyncio.gather(*(asyncio.to_thread(_run_check, check, name, subject) for check in _checks(name)))
        return [finding for findings in found for finding in findings]


def _ipv4_addresses(interfaces: Sequence[InterfaceSeen]) -> dict[str, str]:
    """The first one of each interface in use."""
    return {entry.name: address for entry in interfaces if not entry.skipped for address in entry.addresses[:1] if ":" not in address}


def _checks(name: str) -> Iterator[DoctorCheck]:
    for entry in entry_points(group=DOCTOR_GROUP, name=name):
        yield entry.load()


def _run_check(check: DoctorCheck, name: str, subject: Subject) -> Sequence[Finding]:
    with contextlib.suppress(OSError):
        return check(subject)
    return [Finding("This machine", name, Status.WARNING, f"the check of {name} could not read what it needs")]
