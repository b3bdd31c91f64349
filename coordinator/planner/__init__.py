"""Who computes which part of the model: the planner. A pure function of what the model needs and what the shards offer.

A plan gives every unit (embedding, layers, head) to exactly one shard, each shard a contiguous run. One token of one sequence
passes through all stages one after the other, so a step takes

    T = sum over the stages (decode_s_per_byte * bytes read + hop_s)        (`streaming`: where there is no room for all layers)

and a shard only helps if memory or `min_shards` demands it, or if it is faster than the one whose layers it takes. The embedding
reads one row of its table per token, so it counts for memory but not for time. A run fits a shard if its weights (a table that
embedding and head share counts once when both lie on one shard), the KV cache of its layers for one whole context and the
shard's reserve stay within the shard's budget.

The search knows three levels:
1. `search`: the fastest cover, min T;
2. `balancing`: among the cuts of these stages that are at most BALANCE_SLACK slower, the one whose busiest stage has the least to do
   for a request (PROMPT_TOKENS_PER_ANSWER_TOKEN), since that stage limits how fast a long prompt and many sequences get on; so two
   machines that are nearly equal share the work instead of one doing all;
3. `stages`: all memory that is left gives KV blocks, up to the target.

Moving layers costs time. A unit that is not where it was counts HYSTERESIS dearer (CACHE_SHARE of that where its weights are still
held), and a previous plan that is still possible stays unless the new one is faster by more than HYSTERESIS. An urgent plan, while no
answers come, moves as little as possible, whatever that costs: a better one may be prepared once it serves.
"""

from dairllm.coordinator.planner.amounts import format_bytes, format_rate, format_speed
from dairllm.coordinator.planner.balancing import BALANCE_SLACK
from dairllm.coordinator.planner.decision import make_plan
from dairllm.coordinator.planner.demand import KvDemand, ModelDemand, ShardOffer, UnitDemand
from dairllm.coordinator.planner.plan import Infeasible, LeftOut, Plan, Stage
from dairllm.coordinator.planner.problem import ASSUMED_DECODE_S_PER_BYTE, ASSUMED_STREAM_S_PER_BYTE, HYSTERESIS
from dairllm.coordinator.planner.search import EXACT_SHARDS

__all__ = [
    "ASSUMED_DECODE_S_PER_BYTE",
    "ASSUMED_STREAM_S_PER_BYTE",
    "BALANCE_SLACK",
    "EXACT_SHARDS",
    "HYSTERESIS",
    "Infeasible",
    "KvDemand",
    "LeftOut",
    "ModelDemand",
    "Plan",
    "ShardOffer",
    "Stage",
    "UnitDemand",
    "format_bytes",
    "format_rate",
    "format_speed",
    "make_plan",
]
