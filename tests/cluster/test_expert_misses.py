"""Texts choose some experts more often than others: what is expected follows what is measured."""

import pytest

from dairllm.coordinator.cluster.books.expert_misses import LEAST_CHOSEN, ExpertMisses
from dairllm.coordinator.cluster.shard_reports import ShardUsage


def beat(misses: ExpertMisses, found: int, missed: int, expected: float = 0.5) -> bool:
    usage = ShardUsage(experts_found=misses.found + found, experts_missed=misses.missed + missed)
    return misses.measure(usage, expected)


def test_the_ratio_comes_to_what_is_measured() -> None:
    misses = ExpertMisses()
    told = [beat(misses, 900, 100) for _ in range(40)]
    assert misses.ratio == pytest.approx(0.2, rel=0.01)
    assert told[0]
    assert not told[-1], "what changes by less than a twentieth is no news"


def test_few_choices_say_nothing_and_are_counted_with_the_next() -> None:
    misses = ExpertMisses()
    assert not beat(misses, LEAST_CHOSEN // 2, 0)
    assert misses == ExpertMisses()
    assert misses.measure(ShardUsage(experts_found=LEAST_CHOSEN, experts_missed=0), 0.5)
    assert misses.ratio == pytest.approx(0.7)


def test_nothing_is_measured_where_all_experts_have_room() -> None:
    misses = ExpertMisses()
    assert not beat(misses, 5000, 0, expected=0.0)
    assert misses.ratio == 1.0
