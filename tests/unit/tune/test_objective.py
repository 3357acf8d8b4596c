"""What trials are compared by."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgray.tune.objective import Goal, Score, best_top1, cost_to, pareto_front

CURVES = st.lists(
    st.lists(st.builds(Score, st.floats(0.01, 2), st.floats(0, 1)), max_size=5).map(
        lambda s: sorted(s, key=lambda p: p.cost)
    ),
    max_size=5,
)
SLOW, FAST, NEVER = [Score(0.5, 0.6), Score(1.0, 0.9)], [Score(0.2, 0.8)], [Score(0.9, 0.7)]


def test_accuracy_is_the_best_validation() -> None:
    goal = Goal(objective="accuracy", budget=1.0)
    assert [goal.value(scores) for scores in (SLOW, FAST, [])] == [0.9, 0.8, 0.0]
    assert not goal.is_met(SLOW)
    assert (goal.is_spent(SLOW), goal.is_spent(FAST), goal.is_spent([])) == (True, False, False)


def test_cost_puts_those_that_reach_the_target_first_and_the_cheapest_of_them() -> None:
    goal = Goal(objective="cost", budget=1.0, target=0.8)
    values = [goal.value(scores) for scores in (FAST, SLOW, NEVER, [])]
    assert values == sorted(values, reverse=True) and values[:2] == [-0.2, -1.0]
    assert (goal.is_met(FAST), goal.is_met(NEVER)) == (True, False)
    assert cost_to(NEVER, 0.8) is None


@given(CURVES)
def test_the_front_is_what_no_other_beats(curves: list[list[Score]]) -> None:
    front = pareto_front(curves)
    every = [score for curve in curves for score in curve]
    assert all(any(f.cost <= s.cost and f.top1 >= s.top1 for f in front) for s in every)
    assert not any(o.cost <= f.cost and o.top1 > f.top1 for f in front for o in every)
    assert [f.cost for f in front] == sorted({f.cost for f in front})
    assert best_top1(front) == max((s.top1 for s in every), default=0.0)
