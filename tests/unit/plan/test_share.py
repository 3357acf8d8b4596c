"""Shares: whole batch-norm groups, contiguous, a partition on any number of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.plan import Plan, PlanSpec, share_of


def check_shares(world_size: int, clips: int, groups: int) -> None:
    shares = [share_of(rank, world_size, clips, groups) for rank in range(world_size)]
    assert [clip for share in shares for clip in share.clips] == list(range(clips))
    sizes = [len(share.clips) for share in shares]
    groups = min(groups, clips)
    largest_group = -(-clips // groups)
    if groups >= world_size:
        counts = [len(share.groups) for share in shares]
        assert max(counts) - min(counts) <= 1
        assert max(sizes) <= -(-groups // world_size) * largest_group
    else:
        assert max(sizes) <= -(-largest_group // (world_size // groups))
    for rank, share in enumerate(shares):
        assert rank in share.ranks
        assert [clip for group in share.groups for clip in group] == list(share.clips)
        assert all(shares[other].ranks == share.ranks for other in share.ranks)
        assert len(share.groups) == 1 or share.ranks == range(rank, rank + 1)


@pytest.mark.parametrize("world_size", range(1, 131))
def test_shares_are_a_partition(world_size: int) -> None:
    for clips, groups in ((64, 8), (1024, 64), (28, 3), (5, 1), (16, 2), (1, 1)):
        check_shares(world_size, clips, groups)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 130), st.integers(1, 300), st.integers(1, 80))
def test_any_shares_are_a_partition(world_size: int, clips: int, groups: int) -> None:
    check_shares(world_size, clips, groups)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 128])
def test_groups_are_the_same_on_any_number_of_ranks(world_size: int) -> None:
    """Clips that share statistics are named by the step alone, not by the number of ranks."""
    plan = Plan.compile(PlanSpec(batch=12, long_cycle="stage", short_cycle=True), 5000)
    for index in (0, 1, plan.phases[3].first_step, plan.num_steps - 1):
        step = plan.step_at(index)
        alone = share_of(0, 1, step.shape.clips, step.bn_groups).groups
        found: dict[int, list[int]] = {}
        for rank in range(world_size):
            share = share_of(rank, world_size, step.shape.clips, step.bn_groups)
            for group in share.groups:
                key = share.ranks.start if len(share.ranks) > 1 else (group.start, rank)
                found.setdefault(key, []).extend(group)  # type: ignore[arg-type]
        assert sorted(found.values()) == [list(group) for group in alone]
