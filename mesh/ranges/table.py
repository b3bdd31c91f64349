"""The range of every field: far above what any machine or model has, and below what would overflow somewhere.

Flags, enums and single messages need no row: a flag is in range, an enum must be one of its values, a message has rules of its own.
"""

import math
from collections.abc import Mapping

from dairllm.mesh.ranges.rules import ANY_32, Data, Name, Pairs, Real, Rule, Several, Text, Whole
from dairllm.mesh.sampling import LOGIT_BIAS_RANGE, MAX_SEED, MAX_TOP_LOGPROBS, SAMPLING_RANGES

MAX_EPOCH = 2**53 - 1
"""One coordinator counts its plans from 1: a plan every microsecond for 285 years. Whole numbers of JSON end here, too."""
MAX_SENTENCE_CHARS = 4096
MAX_CONTEXT = 2**24
MAX_UNITS = 4096
MAX_ASKED = 2**20
"""Tokens that a client may send in one message: to look at each of them takes some hundredths of a second."""

ANY_64 = Whole(2**64 - 1)
"""As ANY_32: of what is only compared, or is refused in better words by who knows what is asked for."""
COUNT = Whole(2**63 - 1)
"""Of what only grows; it fits a signed number."""
SIZE = Whole(2**53 - 1)
"""Bytes of something: eight pebibytes."""
IDENTITY = Whole(2**53 - 1)
EPOCH = Whole(MAX_EPOCH)
TOKEN = Whole(2**24 - 1)
POSITION = Whole(MAX_CONTEXT)
BLOCK = Whole(2**31 - 2)
ROWS = 2**16
"""Of one frame."""
UNIT = Whole(MAX_UNITS)
WIDTH = Whole(2**24)
VERSION = Whole(2**16)
THREADS = Whole(2**16)
INTERVAL_MS = Whole(3_600_000)

SECONDS = Real(0.0, 1e10)
SPEED = Real(0.0, 1e12)
FACTOR = Real(-1e30, 1e30)
LOGPROB = Real(-math.inf, 1.0, is_sometimes_nan=True)
"""One that was not asked for is NaN, that of a token which never comes is -inf; rounding makes 0 a little more."""

LABEL = Name(64)
"""Names, ids and hashes, which people read and type."""
WORDS = Name(1024)
"""Of a machine or a model file."""
FILE_NAME = Text(4096)
HEARD = Text(4096)
"""What others say of themselves, and nobody here can mend: whoever shows it takes care."""
SENTENCE = Text(MAX_SENTENCE_CHARS)
REPORT = Text(2**20)
"""Of what a coordinator says of all shards."""
PROSE = Text(2**26)
"""What users write is measured by the context, once it is tokenised; a message has at most so many bytes."""
DIGEST = Data(64)
KEY = Data(1024)
BLOB = Data(None)
ADDRESSES = Several(64, Name(300))
TOKENS = Several(MAX_CONTEXT, TOKEN)
BLOCKS = Several(MAX_CONTEXT, BLOCK)

_USAGE = {
    **dict.fromkeys(("weights_bytes", "kv_cache_bytes", "scratch_bytes", "resident_bytes"), SIZE),
    **dict.fromkeys(("frames", "rows", "compute_us", "sent_bytes", "received_bytes"), COUNT),
    **dict.fromkeys(("streamed_bytes", "streaming_us", "stalled_us", "experts_found", "experts_missed"), COUNT),
}
_PROGRESS = dict.fromkeys(("loaded_bytes", "total_bytes", "from_memory_bytes", "from_disk_bytes", "from_network_bytes"), SIZE)
_SAMPLING = {name: Real(low, high) for name, (low, high) in SAMPLING_RANGES.items()}

RULES: Mapping[str, Mapping[str, Rule]] = {
    # model.proto
    "ModelSpec": {
        **{"architecture": WORDS, "name": FILE_NAME, "hidden_size": WIDTH, "vocab_size": WIDTH, "context_length": Whole(2**31 - 1)},
        **{"padding_rows": WIDTH, "layers": Several(MAX_UNITS), "embedding_scale": FACTOR, "logit_scale": FACTOR, "logit_softcap": FACTOR},
    },
    "LayerSpec": {"residual_scale": FACTOR},
    "Norm": {"kind": WORDS, "eps": FACTOR},
    "PerLayerEmbedding": {"width": WIDTH, "embedding_scale": FACTOR, "scale": FACTOR},
    "PerLayerInput": {"width": WIDTH},
    "Rope": {
        **{"theta": FACTOR, "dim": WIDTH, "freq_factors": Several(2**16, FACTOR), "magnitude": FACTOR},
        **{"long_freq_factors": Several(2**16, FACTOR), "original_context": Whole(2**31 - 1)},
    },
    "SelfAttention": {
        **{"num_heads": WIDTH, "num_kv_heads": WIDTH, "key_dim": WIDTH, "value_dim": WIDTH},
        **{"scale": FACTOR, "window": Whole(2**31 - 1), "softcap": FACTOR, "keys_of": UNIT},
    },
    "LatentAttention": {
        **{"num_heads": WIDTH, "query_rank": WIDTH, "kv_rank": WIDTH, "key_dim": WIDTH, "value_dim": WIDTH, "scale": FACTOR},
    },
    "LinearAttention": dict.fromkeys(("num_key_heads", "num_value_heads", "key_dim", "value_dim", "conv_width"), WIDTH),
    "Activation": {"kind": WORDS, "alpha": FACTOR, "limit": FACTOR},
    "DenseFeedForward": {"intermediate_size": WIDTH},
    "ExpertFeedForward": dict.fromkeys(("num_experts", "num_experts_used", "intermediate_size", "shared_intermediate_size"), WIDTH),
    "Router": {"kind": WORDS, "scale": FACTOR, "num_groups": WIDTH, "num_groups_used": WIDTH, "group_best": WIDTH},
    "TensorInfo": {
        **{"name": FILE_NAME, "role": WORDS, "block_format": WORDS, "shape": Several(8, Whole(2**31 - 1))},
        **{"pieces": Several(2**16), "transforms": Several(8, WORDS), "quantized_to": WORDS},
    },
    "TensorPiece": {"file_index": Whole(2**16), "offset_bytes": SIZE, "size_bytes": SIZE},
    "Unit": {"index": UNIT, "tensors": Several(2**16), "size_bytes": SIZE, "digest": DIGEST},
    "ModelFile": {"name": FILE_NAME, "size_bytes": SIZE},
    "Manifest": {"units": Several(MAX_UNITS), "files": Several(2**16), "model_digest": DIGEST},
    # ring.proto
    "EdgeOpen": {"cluster_hash": LABEL, "epoch": ANY_64, "sender": LABEL, "receiver": LABEL, "ring_key": KEY},
    "EdgeAccepted": {"credits": Whole(1024), "heartbeat_interval_ms": INTERVAL_MS},
    "Credit": {"frames": Whole(1024)},
    "FrameRefused": {"epoch": EPOCH, "batch_id": IDENTITY, "message": SENTENCE},
    "MicroBatch": {
        **{"epoch": EPOCH, "batch_id": IDENTITY, "begins": Several(ROWS), "slices": Several(ROWS)},
        **{"ends": Several(2**20, IDENTITY), "timings": Several(MAX_UNITS)},
    },
    "SequenceBegin": {"sequence_id": IDENTITY, "prompt_length": POSITION, "block_ids": BLOCKS, "token_ids": TOKENS},
    "SequenceSlice": {
        **{"sequence_id": IDENTITY, "first_position": POSITION, "token_ids": Several(ROWS, TOKEN), "new_block_ids": Several(ROWS, BLOCK)},
        **{"activations": BLOB, "score_targets": Several(ROWS, TOKEN), "first_unit": UNIT, "end_unit": UNIT},
        **{"replay_at": LABEL, "failure": SENTENCE, "num_samples": Whole(ROWS)},
    },
    "SamplingParams": {
        **_SAMPLING,
        **{"top_k": Whole(2**31 - 1), "seed": Whole(MAX_SEED), "top_logprobs": Whole(MAX_TOP_LOGPROBS)},
        "logit_bias": Pairs(2**17, TOKEN, Real(*LOGIT_BIAS_RANGE)),
    },
    "MicroBatchResult": {"epoch": EPOCH, "batch_id": IDENTITY, "results": Several(ROWS), "timings": Several(MAX_UNITS)},
    "SequenceResult": {"sequence_id": IDENTITY, "sampled": Several(ROWS), "scores": Several(ROWS), "failure": SENTENCE},
    "TokenLogprobs": {"token_id": TOKEN, "logprob": LOGPROB, "top": Several(MAX_TOP_LOGPROBS)},
    "TopLogprob": {"token_id": TOKEN, "logprob": LOGPROB},
    "StageTiming": {
        **{"shard": LABEL, "num_rows": Whole(ROWS)},
        **dict.fromkeys(("queue_us", "compute_us", "received_bytes", "codec_us"), ANY_32),
    },
    # cluster.proto
    "Hello": {
        **{"protocol_major": VERSION, "protocol_minor": VERSION, "software_version": LABEL, "cluster_hash": LABEL, "name": LABEL},
        **{"boot_id": LABEL, "addresses": ADDRESSES, "last_epoch": ANY_64, "announced_id": LABEL},
    },
    "HeldUnits": {"model_digest": DIGEST, "unit_indexes": Several(MAX_UNITS, UNIT)},
    "ShardCapabilities": {
        **{"memory_budget_bytes": Whole(2**50), "reserved_bytes": COUNT, "process_bytes": COUNT},
        **{"num_threads": THREADS, "isa": LABEL, "cpu_model": HEARD},
        **{"decode_s_per_byte": Real(0.0, 1e-3), "block_formats": Several(256, LABEL), "features": Several(1024, LABEL)},
    },
    "Heartbeat": {"number": COUNT, "round_trip_us": ANY_32},
    "ShardUsage": _USAGE,
    "HeartbeatAck": {"number": COUNT},
    "ShardWork": {
        **dict.fromkeys(("given", "done", "cpu_us", "received_frames", "computed_frames", "sent_frames"), COUNT),
        "epoch": ANY_64,
    },
    "Prove": {"number": COUNT, "challenge": KEY},
    "Proof": {"number": ANY_64, "digest": DIGEST},
    "Welcome": {
        **{"coordinator_id": LABEL, "software_version": LABEL, "heartbeat_interval_ms": INTERVAL_MS, "lease_timeout_ms": INTERVAL_MS},
        "observed_host": Name(300),
    },
    "Assignment": {
        **{"epoch": EPOCH, "model_digest": DIGEST, "units": Several(MAX_UNITS), "model_folder": FILE_NAME, "model_files": Several(2**16)},
        **{"num_kv_blocks": BLOCK, "kv_block_tokens": Whole(2**16), "context_length": POSITION, "max_batch_rows": Whole(ROWS)},
        **{"ring_key": KEY, "weight_sources": Several(64), "kv_key": KEY, "model_urls": Several(2**16, FILE_NAME)},
        **{"streamed_units": Several(MAX_UNITS, UNIT), "expert_places": Whole(2**28)},
    },
    "ActivateStage": {"epoch": EPOCH, "transfers": Several(MAX_UNITS), "alive_sequences": Several(2**20, IDENTITY)},
    "KvTransfer": {"first_unit": UNIT, "end_unit": UNIT, "block_ids": BLOCKS, "kv_key": KEY},
    "StageActivated": {
        **{"epoch": EPOCH, "transferred_units": Several(MAX_UNITS, UNIT), "transferred_bytes": SIZE, "seconds": SECONDS, "note": SENTENCE},
    },
    "Drain": {"reason": SENTENCE},
    "Configure": {"memory_budget_bytes": ANY_64, "num_threads": ANY_32},
    "CapabilitiesChanged": {"refusal": SENTENCE},
    "Peer": {"name": LABEL, "addresses": ADDRESSES},
    "Release": {"epoch": EPOCH, "reason": REPORT},
    "LoadProgress": {"epoch": EPOCH, **_PROGRESS, "trouble": SENTENCE},
    "StageReady": {"epoch": EPOCH, "weights_bytes": SIZE, "kv_cache_bytes": SIZE, "load_s": SECONDS},
    "StageFailed": {"epoch": EPOCH, "message": SENTENCE, "missing_bytes": SIZE},
    "EdgeLost": {"epoch": EPOCH, "peer": LABEL, "message": SENTENCE},
    "Leaving": {"reason": SENTENCE},
    "CoordinatorIdentity": {"protocol_major": VERSION, "protocol_minor": VERSION, "cluster_hash": LABEL, "time_s": SECONDS},
    "ClusterState": {
        **{"coordinator_id": LABEL, "software_version": LABEL, "model": FILE_NAME, "model_digest": DIGEST, "num_layers": UNIT},
        **{"model_size_bytes": SIZE, "reason": REPORT, "epoch": EPOCH, "shards": Several(2**16), "predicted_decode_tok_s": SPEED},
        **{"measured_decode_tok_s": SPEED, "running_sequences": ANY_32, "waiting_sequences": ANY_32, "kv_blocks_total": BLOCK},
        **{"kv_blocks_free": BLOCK, "events": Several(2**16), "next_epoch": EPOCH, "missing_bytes": SIZE, "seen": Several(2**16)},
        **{"lost": Several(2**16), "memory_for_all_bytes": SIZE, "in_memory_decode_tok_s": SPEED},
        **{"arithmetic": WORDS, "system_fingerprint": LABEL},
    },
    "SeenShard": {"id": HEARD, "name": HEARD, "addresses": Several(64, HEARD), "reason": REPORT, "since_time_s": SECONDS},
    "ClusterEvent": {
        "time_s": SECONDS,
        "kind": LABEL,
        "shard": LABEL,
        "text": REPORT,
        "duration_s": SECONDS,
        "number": COUNT,
        "times": ANY_32,
    },
    "LostShard": {
        **{"name": LABEL, "addresses": ADDRESSES, "reason": REPORT, "since_time_s": SECONDS, "first_unit": UNIT, "end_unit": UNIT},
        "software_version": LABEL,
    },
    "ShardState": {
        **{"name": LABEL, "addresses": ADDRESSES, "stage": UNIT, "first_unit": UNIT, "end_unit": UNIT, "round_trip_us": ANY_32},
        **{"last_seen_s": SECONDS, "predicted_step_s": SECONDS, "measured_step_s": SECONDS, "note": REPORT, "software_version": LABEL},
        **{"next_first_unit": UNIT, "next_end_unit": UNIT, "streamed_bytes": SIZE, "stream_s_per_byte": SECONDS},
        **{"expert_places": ANY_32, "experts_touched": ANY_32},
    },
    "DrainShardRequest": {"name": WORDS},
    "CordonShardRequest": {"name": WORDS},
    "ConfigureShardRequest": {"name": WORDS, "memory_budget_bytes": ANY_64, "num_threads": ANY_32},
    "ConfigureShardResponse": {"memory_budget_bytes": ANY_64, "num_threads": ANY_32},
    # shard.proto
    "GetStatsResponse": {
        **{"name": LABEL, "software_version": LABEL, "epoch": EPOCH, "first_unit": UNIT, "end_unit": UNIT, "coordinator": LABEL},
    },
    "EchoRequest": {"payload": BLOB, "reply_size_bytes": ANY_32},
    "EchoResponse": {"payload": BLOB},
    "InviteRequest": {
        **{"cluster_hash": LABEL, "protocol_major": VERSION, "protocol_minor": VERSION, "coordinator_id": LABEL, "addresses": ADDRESSES},
    },
    "FetchKvRequest": {
        **{"model_digest": DIGEST, "first_unit": UNIT, "end_unit": UNIT, "block_ids": BLOCKS, "block_bytes": SIZE, "kv_key": KEY},
    },
    "FetchKvResponse": {"unit": UNIT, "block_ids": BLOCKS, "data": BLOB, "position": POSITION, "offset_bytes": SIZE},
    # weights.proto
    "FetchUnitRequest": {"model_digest": DIGEST, "unit_index": UNIT, "offset_bytes": SIZE, "unit_digest": DIGEST},
    "FetchUnitResponse": {"offset_bytes": SIZE, "data": BLOB},
    # inference.proto
    "ChatMessage": {"role": PROSE, "content": PROSE},
    "ChatMessages": {"messages": Several(2**14)},
    "TokenIds": {"ids": Several(MAX_ASKED, TOKEN)},
    "GenerateRequest": {"model": FILE_NAME, "text": PROSE, "max_tokens": ANY_32, "stop": Several(1024, PROSE)},
    "GenerateResponse": {"text": PROSE, "tokens": Several(2**20)},
    "GenerateFinish": {
        **{"prompt_tokens": POSITION, "cached_tokens": POSITION, "completion_tokens": POSITION},
        **{"first_token_s": SECONDS, "decode_s": SECONDS},
    },
    "TokenizeRequest": {"model": FILE_NAME, "text": PROSE},
    "TokenizeResponse": {"token_ids": TOKENS},
    "DetokenizeRequest": {"model": FILE_NAME, "token_ids": Several(MAX_ASKED, ANY_32)},
    "DetokenizeResponse": {"text": PROSE},
    "ListModelsResponse": {"models": Several(1024)},
    "ModelInfo": {
        **{"name": FILE_NAME, "architecture": WORDS, "context_length": ANY_32, "vocab_size": ANY_32},
        **{"arithmetic": WORDS, "system_fingerprint": LABEL},
    },
}
"""By message, then by field."""
