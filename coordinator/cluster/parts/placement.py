"""What lies where, and whether old and new fit one memory. Pure functions."""

from collections.abc import Mapping, Set

from dairllm.coordinator.planner import ModelDemand


def placement_of_held(held: Mapping[str, Set[int]], num_units: int) -> dict[str, range]:
    """One contiguous run per shard out of what shards hold in memory, so that together they cover as much of the model as possible from
    the first unit on; ring order. If the shards hold a plan's units and nothing else, it is that plan."""
    placement: dict[str, range] = {}
    start = 0
    while start < num_units:
        runs = {name: _run_from(start, units) for name, units in sorted(held.items()) if name not in placement}
        name = max(runs, key=lambda name: len(runs[name]), default=None)
        if name is None or not runs[name]:
            start += 1
        else:
            placement[name] = runs[name]
            start = runs[name].stop
    return placement


def _run_from(start: int, units: Set[int]) -> range:
    stop = start
    while stop in units:
        stop += 1
    return range(start, stop)


def needs_exclusive(
    model: ModelDemand, block_tokens: int, old: range, old_blocks: int, new: range, new_blocks: int, room_bytes: int
) -> bool:
    """Whether a shard with `room_bytes` for weights and KV cache cannot load the units `new` beside `old`, which it goes on using.

    A layer that it keeps has one cache, of the larger size.
    """
    if set(new) <= set(old) and new_blocks <= old_blocks:
        return False
    blocks = dict.fromkeys(old, old_blocks) | {unit: max(new_blocks, old_blocks if unit in old else 0) for unit in new}
    cache_bytes = sum(model.units[unit].state_bytes_per_token * block_tokens * count for unit, count in blocks.items())
    return model.weights_bytes_of_both(old, new) + cache_bytes > room_bytes
