"""What goes over the wire: bytes per token and hop, the error of each encoding on real activations, its speed, and control messages.

    .venv/bin/python benchmarks/wire.py --model smollm2:135m [--boundaries 1,8,16] [--json]

- Sizes: activations of one row (one token over one hop) and of a whole frame as serialised: ForwardRequest with a MicroBatch for one
  decoded token, and for a prompt's chunk of 512 rows. gRPC and TCP add their headers, about 50 to 100 bytes a frame.
- Errors: rows of the residual stream at several boundaries (boundary b lies before unit b; unit 0 is the embedding), computed from the
  project's documents, encoded and decoded. RMS and the largest error in the units of the residual stream; relative: mean squared error
  over the mean square of the values. A few huge channels make up most of that mean square and hide what happens to the others:
  "ordinary" is the same over all values but each row's 8 largest.
- Speed: encoding and decoding of 1 and of 512 rows, in one thread, the median of repeats; GB/s of float32 values.
- Control messages: what the programs do send, against the same fields as compact JSON. Time to write and parse: protobuf; plain
  dicts with json (no checks of names or types, bytes as base64 text); protobuf's own JSON, which checks as protobuf does.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from command import run, show
from google.protobuf import json_format
from google.protobuf.message import Message
from loaded_model import BLOCK_TOKENS, CHUNK_ROWS, LoadedModel, TokenIds, block_table, documents, load
from rich.table import Table

from dairllm.kernels_pyx import (
    BLOCK_FORMATS,
    STAGE_FEATURES,
    WIRE_ENCODINGS,
    StageSlice,
    decode_rows,
    encode_rows,
    encoded_row_bytes,
    set_num_threads,
)
from dairllm.mesh.cluster_name import DEFAULT_CLUSTER_NAME, cluster_hash
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from dairllm.mesh.ring.codec import forward_request
from dairllm.mesh.ring.frames import (
    MicroBatch,
    MicroBatchResult,
    RingId,
    SequenceBegin,
    SequenceResult,
    SequenceSlice,
    StageTiming,
    TokenScore,
)
from dairllm.mesh.sampling import SamplingParams
from dairllm.model_files.codec import file_to_proto, spec_to_proto, unit_to_proto
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.v1 import cluster_pb2

EXACT = "F32"
NUM_OUTLIERS = 8
REPEATS = 7
TIMED_S = 0.02
EPOCH = 3
BATCH_ID = 1234
POSITION = 700

Rows = npt.NDArray[np.float32]


# Sizes


@dataclass(frozen=True, slots=True)
class Size:
    """saved: share of float32's bytes that activations are less. Bytes of whole frames are those of the serialised request."""

    encoding: str
    row_bytes: int
    saved: float
    decode_frame_bytes: int
    prefill_frame_bytes: int


def measure_sizes(hidden_size: int, vocab_size: int) -> list[Size]:
    exact_bytes = encoded_row_bytes(EXACT, hidden_size)
    return [
        Size(
            encoding=encoding,
            row_bytes=(row_bytes := encoded_row_bytes(encoding, hidden_size)),
            saved=1 - row_bytes / exact_bytes,
            decode_frame_bytes=forward_request(decode_frame(encoding, hidden_size)).ByteSize(),
            prefill_frame_bytes=forward_request(prefill_frame(encoding, hidden_size, vocab_size)).ByteSize(),
        )
        for encoding in WIRE_ENCODINGS
    ]


def decode_frame(encoding: str, hidden_size: int, *, is_first: bool = False) -> MicroBatch:
    """One row of one sequence, between two shards; is_first: from the coordinator to the first shard."""
    part = _slice(encoding, 0 if is_first else hidden_size, POSITION, (12345,), sample=True)
    return MicroBatch(EPOCH, BATCH_ID, encoding, (), (part,), (), () if is_first else (_timing(1),))


def prefill_frame(encoding: str, hidden_size: int, vocab_size: int) -> MicroBatch:
    """The first chunk of a long prompt, between two shards."""
    ids = tuple(np.random.default_rng(1).integers(0, vocab_size, CHUNK_ROWS).tolist())
    begin = SequenceBegin(RingId(77), 3 * CHUNK_ROWS, SamplingParams())
    return MicroBatch(
        EPOCH, BATCH_ID, encoding, (begin,), (_slice(encoding, hidden_size, 0, ids, sample=False),), (), (_timing(CHUNK_ROWS),)
    )


def _slice(encoding: str, hidden_size: int, first_position: int, ids: tuple[int, ...], sample: bool) -> SequenceSlice:
    """hidden_size: 0 for no activations."""
    activations = bytes(len(ids) * encoded_row_bytes(encoding, hidden_size)) if hidden_size else b""
    blocks = tuple(range(40, 40 + len(ids) // BLOCK_TOKENS))
    return SequenceSlice(RingId(77), first_position, ids, blocks, sample, activations=activations)


def _timing(num_rows: int) -> StageTiming:
    return StageTiming("kitchen", 120, 1800, 0, num_rows, 110)


# Errors


@dataclass(frozen=True, slots=True)
class EncodingError:
    """rms_values, largest_value: of the activations themselves, for scale. relative: mean squared error over mean square."""

    boundary: int
    encoding: str
    rms_values: float
    largest_value: float
    rms: float
    largest: float
    relative: float
    relative_ordinary: float


def residual_streams(model: LoadedModel, boundaries: Sequence[int], token_ids: TokenIds) -> dict[int, Rows]:
    """Rows [tokens, hidden] at each boundary, exact on the way."""
    streams: dict[int, Rows] = {}
    rows: TokenIds | Rows = token_ids
    for start, stop in pairwise((0, *boundaries)):
        span = range(start, stop)
        body, kv = model.stage(span).body, model.kv_caches(span, len(token_ids))
        assert body is not None, "units before the head"
        rows = body.run(kv, rows, [StageSlice(len(token_ids), 0, block_table(len(token_ids)))])
        streams[stop] = rows
    return streams


def measure_errors(streams: dict[int, Rows]) -> list[EncodingError]:
    return [_error(boundary, encoding, rows) for boundary, rows in streams.items() for encoding in WIRE_ENCODINGS if encoding != EXACT]


def _error(boundary: int, encoding: str, rows: Rows) -> EncodingError:
    exact = rows.astype(np.float64)
    error = decode_rows(encode_rows(rows, encoding), len(rows), rows.shape[1], encoding).astype(np.float64) - exact
    ordinary = np.ones(rows.shape, bool)
    np.put_along_axis(ordinary, np.argpartition(np.abs(exact), -NUM_OUTLIERS, axis=1)[:, -NUM_OUTLIERS:], False, axis=1)
    return EncodingError(
        boundary=boundary,
        encoding=encoding,
        rms_values=float(np.sqrt(np.mean(exact**2))),
        largest_value=float(np.abs(exact).max()),
        rms=float(np.sqrt(np.mean(error**2))),
        largest=float(np.abs(error).max()),
        relative=float(np.mean(error**2) / np.mean(exact**2)),
        relative_ordinary=float(np.mean(error[ordinary] ** 2) / np.mean(exact[ordinary] ** 2)),
    )


# Speed


@dataclass(frozen=True, slots=True)
class Speed:
    encoding: str
    rows: int
    encode_us_per_row: float
    decode_us_per_row: float
    encode_gb_s: float
    decode_gb_s: float


def measure_speed(stream: Rows) -> list[Speed]:
    return [_speed(encoding, stream[:num_rows]) for encoding in WIRE_ENCODINGS for num_rows in (1, len(stream))]


def _speed(encoding: str, rows: Rows) -> Speed:
    data = encode_rows(rows, encoding)
    encode_s = seconds_per_call(lambda: encode_rows(rows, encoding))
    decode_s = seconds_per_call(lambda: decode_rows(data, len(rows), rows.shape[1], encoding))
    per_row_us, gigabytes = 1e6 / len(rows), rows.nbytes / 1e9
    return Speed(encoding, len(rows), encode_s * per_row_us, decode_s * per_row_us, gigabytes / encode_s, gigabytes / decode_s)


def seconds_per_call(call: Callable[[], object]) -> float:
    """The median over some repeats, each of as many calls as take a measurable time."""
    began_s = time.perf_counter()
    call()
    calls = max(1, round(TIMED_S / (time.perf_counter() - began_s)))
    repeats = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        for _ in range(calls):
            call()
        repeats.append((time.perf_counter() - began_s) / calls)
    return median(repeats)


# Control messages


@dataclass(frozen=True, slots=True)
class MessageCost:
    """Times are for writing and parsing once. json: plain dicts; checked_json: protobuf's JSON form, with its checks."""

    name: str
    bytes: int
    json_bytes: int
    us: float
    json_us: float
    checked_json_us: float


def measure_messages(messages: dict[str, Message]) -> list[MessageCost]:
    return [_message_cost(name, message) for name, message in messages.items()]


def _message_cost(name: str, message: Message) -> MessageCost:
    kind, fields = type(message), json_format.MessageToDict(message)
    binary, text = message.SerializeToString(), _compact_json(fields)
    return MessageCost(
        name=name,
        bytes=len(binary),
        json_bytes=len(text),
        us=1e6 * seconds_per_call(lambda: kind.FromString(message.SerializeToString())),
        json_us=1e6 * seconds_per_call(lambda: json.loads(_compact_json(fields))),
        checked_json_us=1e6 * seconds_per_call(lambda: json_format.Parse(json_format.MessageToJson(message, indent=None), kind())),
    )


def _compact_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def control_messages(model: LoadedModel) -> dict[str, Message]:
    """As the programs send them, with the envelopes of their streams."""
    join, answer = cluster_pb2.JoinRequest, cluster_pb2.JoinResponse
    load = cluster_pb2.LoadProgress(epoch=EPOCH, loaded_bytes=41_000_000, total_bytes=96_000_000, from_disk_bytes=41_000_000)
    result = MicroBatchResult(EPOCH, BATCH_ID, (SequenceResult(RingId(77), (TokenScore(12345, -0.25),)),), (_timing(1), _timing(1)))
    return {
        "Hello": join(hello=_hello(model)),
        "Assignment": answer(assignment=_assignment(model)),
        "LoadProgress": join(load_progress=load),
        "Heartbeat": join(heartbeat=cluster_pb2.Heartbeat(number=4321, round_trip_us=640, usage=_usage())),
        "HeartbeatAck": answer(heartbeat_ack=cluster_pb2.HeartbeatAck(number=4321)),
        "MicroBatch, decode": forward_request(decode_frame(EXACT, model.spec.hidden_size, is_first=True)),
        "MicroBatchResult": forward_request(result),
    }


def _hello(model: LoadedModel) -> cluster_pb2.Hello:
    capabilities = cluster_pb2.ShardCapabilities(
        memory_budget_bytes=8 << 30,
        reserved_bytes=256 << 20,
        num_threads=8,
        isa="avx512vnni",
        cpu_model="AMD EPYC 9R14",
        decode_s_per_byte=4.1e-11,
        block_formats=list(BLOCK_FORMATS),
        features=STAGE_FEATURES,
    )
    return cluster_pb2.Hello(
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
        software_version=software_version(),
        cluster_hash=cluster_hash(DEFAULT_CLUSTER_NAME),
        name="kitchen",
        boot_id="8d1f6a52c09b4e37",
        addresses=["192.168.1.23:50061", "[fd00::23]:50061"],
        capabilities=capabilities,
    )


def _usage() -> cluster_pb2.ShardUsage:
    return cluster_pb2.ShardUsage(
        weights_bytes=48_000_000,
        kv_cache_bytes=377_000_000,
        scratch_bytes=21_000_000,
        resident_bytes=139_000_000,
        frames=90_123,
        rows=180_456,
        compute_us=312_345_678,
        sent_bytes=71_234_567,
        received_bytes=12_345_678,
    )


def _assignment(model: LoadedModel) -> cluster_pb2.Assignment:
    """The first half of the model."""
    manifest = build_manifest(model.path)
    return cluster_pb2.Assignment(
        epoch=EPOCH,
        model_digest=manifest.model_digest,
        spec=spec_to_proto(manifest.spec),
        units=[unit_to_proto(unit) for unit in manifest.units[: len(manifest.units) // 2]],
        model_folder="/home/somebody/.cache/dairllm/models",
        model_files=[file_to_proto(file) for file in manifest.files],
        next=cluster_pb2.Peer(name="study", addresses=["192.168.1.24:50061"]),
        num_kv_blocks=1024,
        kv_block_tokens=BLOCK_TOKENS,
        context_length=8192,
        max_batch_rows=CHUNK_ROWS,
    )


# The command


def parse_boundaries(text: str | None, num_layers: int) -> tuple[int, ...]:
    """Boundaries 1 to num_layers + 1, ascending; by default five over the whole model."""
    if text is None:
        return tuple(sorted({1, *(1 + num_layers * quarter // 4 for quarter in range(1, 5))}))
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(numbers) != text.count(",") + 1 or numbers != sorted(set(numbers)) or not 1 <= numbers[0] <= numbers[-1] <= num_layers + 1:
        raise InvalidSetting(f"--boundaries {text} is not an ascending list of boundaries from 1 to {num_layers + 1}")
    return tuple(numbers)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(*texts, title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _size_table(sizes: Sequence[Size], width: int) -> Table:
    title = f"Bytes per hop, rows of {width} values"
    table = _table(title, ["encoding"], ["one token", "less than F32", "frame, decode", "less", "frame, 512 rows", "less"])
    exact = sizes[0]
    for size in sizes:
        decode_less = 1 - size.decode_frame_bytes / exact.decode_frame_bytes
        prefill_less = 1 - size.prefill_frame_bytes / exact.prefill_frame_bytes
        table.add_row(
            *(size.encoding, f"{size.row_bytes}", f"{size.saved:.1%}", f"{size.decode_frame_bytes}", f"{decode_less:.1%}"),
            *(f"{size.prefill_frame_bytes}", f"{prefill_less:.1%}"),
        )
    return table


def _error_table(errors: Sequence[EncodingError], num_rows: int) -> Table:
    title = f"Error on {num_rows} real rows"
    numbers = ["RMS of values", "largest value", "RMS error", "largest error", "relative (MSE/MS)", "relative, ordinary"]
    table = _table(title, ["boundary", "encoding"], numbers)
    for error in errors:
        table.add_row(
            *(str(error.boundary), error.encoding, f"{error.rms_values:.2f}", f"{error.largest_value:.0f}"),
            *(f"{error.rms:.2e}", f"{error.largest:.2e}", f"{error.relative:.2e}", f"{error.relative_ordinary:.2e}"),
        )
    return table


def _speed_table(speeds: Sequence[Speed]) -> Table:
    table = _table("Speed, one thread", ["encoding"], ["rows", "encode, µs/row", "GB/s", "decode, µs/row", "GB/s"])
    for speed in speeds:
        table.add_row(
            *(speed.encoding, str(speed.rows), f"{speed.encode_us_per_row:.2f}", f"{speed.encode_gb_s:.2f}"),
            *(f"{speed.decode_us_per_row:.2f}", f"{speed.decode_gb_s:.2f}"),
        )
    return table


def _message_table(costs: Sequence[MessageCost]) -> Table:
    numbers = ["bytes", "as JSON", "ratio", "µs to write and parse", "json", "protobuf's JSON"]
    table = _table("Control messages", ["message"], numbers)
    for cost in costs:
        table.add_row(
            *(cost.name, f"{cost.bytes}", f"{cost.json_bytes}", f"{cost.json_bytes / cost.bytes:.1f}"),
            *(f"{cost.us:.1f}", f"{cost.json_us:.1f}", f"{cost.checked_json_us:.1f}"),
        )
    return table


def wire(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    boundaries: Annotated[str | None, typer.Option(help="Where to look at activations, like 1,16. Default: five over the model.")] = None,
    text: Annotated[list[Path] | None, typer.Option(exists=True, help="Document to read instead of the project's; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure sizes, errors and speed of what goes over the wire."""
    loaded = load(model, CHUNK_ROWS)
    chosen = parse_boundaries(boundaries, loaded.spec.num_layers)
    sample = documents(loaded.path, CHUNK_ROWS, CHUNK_ROWS, text or ())[0]
    streams = residual_streams(loaded, chosen, sample.token_ids)
    sizes = measure_sizes(loaded.spec.hidden_size, loaded.spec.vocab_size)
    errors = measure_errors(streams)
    set_num_threads(1)
    speeds = measure_speed(streams[chosen[len(chosen) // 2]])
    costs = measure_messages(control_messages(loaded))
    if as_json:
        parts: dict[str, Sequence[Any]] = {"sizes": sizes, "errors": errors, "speeds": speeds, "messages": costs}
        results = {name: [asdict(row) for row in rows] for name, rows in parts.items()}
        print(json.dumps({"model": loaded.spec.name, "hidden_size": loaded.spec.hidden_size, **results}))
        return
    show(
        _size_table(sizes, loaded.spec.hidden_size),
        _error_table(errors, len(sample.token_ids)),
        _speed_table(speeds),
        _message_table(costs),
    )


if __name__ == "__main__":
    run(wire)
