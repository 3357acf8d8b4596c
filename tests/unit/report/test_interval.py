"""Intervals over seeds, against values of Student's t."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mgray.report import read_run
from mgray.report.compare import compare
from mgray.report.interval import ratio_interval
from tests.unit.report.writer import BASELINE, MULTIGRID, RunWriter


def test_two_ratios() -> None:
    """Logarithms 0 and 2 a: mean a, standard error a, t of one degree of freedom 12.706."""
    assert ratio_interval([1.0, 4.0]) == pytest.approx((2.0, 2.0**-11.706, 2.0**13.706))


@pytest.mark.parametrize(("count", "t"), [(3, 4.303), (31, 2.042), (41, 2.021), (121, 1.980)])
def test_t_of_its_degrees_of_freedom(count: int, t: float) -> None:
    ratios = [math.exp(0.1 * (i - (count - 1) / 2)) for i in range(count)]
    found = ratio_interval(ratios)
    error = 0.1 * math.sqrt((count**2 - 1) / 12 * count / (count - 1) / count)
    assert found is not None
    assert (math.log(found[2]) / error, found[0]) == pytest.approx((t, 1.0), abs=3e-3)


def test_too_few() -> None:
    assert ratio_interval([2.0]) is None
    assert ratio_interval([]) is None


def test_rows_say_n(tmp_path: Path) -> None:
    """Runs that do not reach the accuracy are out of the interval, and n says so."""
    base = [RunWriter(tmp_path, f"base{seed}", BASELINE, seed=seed, step_s=6.0).train([0.5, 0.8]) for seed in range(3)]
    steps = RunWriter(tmp_path, "any", MULTIGRID).plan.num_steps
    grid = [
        RunWriter(tmp_path, f"grid{seed}", MULTIGRID, seed=seed, step_s=64 / steps * (1 + seed)).train([0.5, 0.8 if seed < 2 else 0.1])
        for seed in range(3)
    ]  # fmt: skip
    comparison = compare([read_run(folder) for folder in base + grid])
    cells = [row.cells for row in comparison.rows() if row.label == "95 % interval over seeds"]
    assert len(cells) == 2
    assert cells[0][0] == "-"
    assert cells[0][1].endswith("(n = 2 of 3)")
    found = ratio_interval([384 / 64, 384 / 128])
    assert found is not None
    assert cells[0][1] == f"{found[1]:.2f}x to {found[2]:.1f}x (n = 2 of 3)"
    assert any("n counts the runs" in note and "too favourable" in note for note in comparison.notes())
