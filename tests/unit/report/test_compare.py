"""Speed-ups are measured against the baseline's best accuracy, over seeds and folds, and said as they are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mgray.errors import DataError
from mgray.report import print_comparison, read_run
from mgray.report.compare import Comparison, compare, schedule_name
from mgray.report.phases import phase_results
from mgray.report.words import magnitude, percent, points, seconds, spread
from tests.unit.report.writer import BASELINE, MULTIGRID, NUM_SAMPLES, PROGRESSIVE, RunWriter


def cell(comparison: Comparison, label: str, group: int) -> str:
    return next(row.cells[group] for row in comparison.rows() if row.label == label)


def test_speed_up_at_the_first_validation_that_is_as_good(tmp_path: Path) -> None:
    multigrid = RunWriter(tmp_path, "multigrid", MULTIGRID, step_s=2.0)
    baseline = RunWriter(tmp_path, "baseline", BASELINE)
    # A baseline that is best at half of its 64 steps; multigrid is exactly as good at its third of four validations.
    runs = [read_run(multigrid.train([0.2, 0.4, 0.5, 0.6])), read_run(baseline.train([0.3, 0.5, 0.4, 0.4]))]
    comparison = compare(runs)
    assert [group.label for group in comparison.groups] == ["baseline", "multigrid"], "the constant plan comes first"
    assert comparison.baseline.is_baseline
    own = 2.0 * (multigrid.plan.num_steps * 3 // 4)
    reach = comparison.groups[1].reach()
    assert reach.seconds == (own,)
    assert reach.partner_seconds == (32.0,)
    assert reach.speedup == pytest.approx(32.0 / own)
    assert comparison.baseline.reach().speedup == 1.0
    assert comparison.groups[1].reach(0.8).seconds == (2.0 * (multigrid.plan.num_steps // 2),)
    expected = f"multigrid reaches the baseline's best top-1 accuracy (50.0 %) {32.0 / own:.2f}x sooner"
    assert comparison.headline() == f"{expected}: in {own:.1f} s of training against 32.0 s."


def test_table_counts_what_was_trained(tmp_path: Path) -> None:
    multigrid = RunWriter(tmp_path, "multigrid", MULTIGRID)
    baseline = RunWriter(tmp_path, "baseline", BASELINE)
    comparison = compare([read_run(baseline.train([0.5])), read_run(multigrid.train([0.5]))])
    result = comparison.groups[1].results[0]
    clips = sum(multigrid.plan.step_at(k).shape.clips for k in range(multigrid.plan.num_steps))
    assert result.num_clips == clips
    assert result.num_epochs == pytest.approx(clips / NUM_SAMPLES)
    assert result.num_voxels == multigrid.plan.voxels
    assert result.wait_share == pytest.approx(0.25)
    assert cell(comparison, "steps", 0) == str(baseline.plan.num_steps)
    assert cell(comparison, "training time", 1) == seconds(float(multigrid.plan.num_steps))
    assert cell(comparison, "data wait", 1) == "25.0 %"
    assert cell(comparison, "validation time", 0) == "2.0 s"
    assert cell(comparison, "final top-1", 0) == "50.0 %"
    assert sum(phase.num_clips for phase in phase_results(result.records)) == clips
    for phase in phase_results(result.records):
        assert phase.clips_per_s == pytest.approx(phase.num_clips / phase.num_steps)
        assert phase.wait_share == pytest.approx(0.25)


def test_not_reached(tmp_path: Path) -> None:
    runs = [
        read_run(RunWriter(tmp_path, "baseline", BASELINE).train([0.5, 0.6])),
        read_run(RunWriter(tmp_path, "multigrid", MULTIGRID).train([0.25, 0.5])),
    ]
    comparison = compare(runs)
    assert comparison.groups[1].reach().speedup is None
    assert cell(comparison, "time to baseline's best", 1) == "not reached"
    assert cell(comparison, "speed-up", 1) == "-"
    headline = comparison.headline()
    assert headline.startswith("No speed-up: multigrid does not reach")
    assert "50.0 %, 10.0 points below" in headline


def test_within_the_standard_error(tmp_path: Path) -> None:
    """57.5 % against 60 % on 40 clips: one clip less, the standard error is three."""
    runs = [
        read_run(RunWriter(tmp_path, "baseline", BASELINE).train([0.5, 0.6])),
        read_run(RunWriter(tmp_path, "multigrid", MULTIGRID).train([0.5, 0.575])),
    ]
    comparison = compare(runs)
    assert comparison.near_share == pytest.approx(1 - (0.6 * 0.4 / 40) ** 0.5 / 0.6)
    assert cell(comparison, "time to baseline's best", 1) == "not reached"
    assert cell(comparison, "time to 1 s.e. below it", 1) == "10.0 s"
    assert cell(comparison, "speed-up to there", 1) == "6.40x"
    assert (
        "comes within the standard error (7.7 points) of the baseline's best top-1 accuracy (60.0 %) 6.40x sooner"
        in comparison.headline()
    )


def test_later_is_no_speed_up(tmp_path: Path) -> None:
    runs = [
        read_run(RunWriter(tmp_path, "baseline", BASELINE).train([0.6, 0.5])),
        read_run(RunWriter(tmp_path, "multigrid", MULTIGRID, step_s=50.0).train([0.5, 0.6])),
    ]
    assert compare(runs).headline().startswith("No speed-up: multigrid reaches")


def test_seeds_are_grouped_and_paired(tmp_path: Path) -> None:
    step_s = {0: 1.0, 1: 2.0}
    runs = []
    for seed in (0, 1):
        runs.append(RunWriter(tmp_path, f"grid-seed{seed}", MULTIGRID, seed=seed, step_s=0.5).train([0.5, 0.6]))
        runs.append(RunWriter(tmp_path, f"base-seed{seed}", BASELINE, seed=seed, step_s=step_s[seed]).train([0.4, 0.6]))
    comparison = compare([read_run(run) for run in runs])
    assert [(group.label, len(group.results)) for group in comparison.groups] == [("base", 2), ("grid", 2)]
    reach = comparison.groups[1].reach()
    assert reach.partner_seconds == (64.0, 128.0), "each run is compared with the baseline of its seed"
    own = reach.seconds[0]
    assert reach.speedups == pytest.approx((64 / own, 128 / own))
    assert reach.speedup == pytest.approx(96 / own)
    assert cell(comparison, "runs", 1) == "2 (seeds 0, 1)"
    assert cell(comparison, "training time", 0) == "96.0 s (64.0 to 128)"
    assert "means of 2 runs" in comparison.headline()


def test_accuracy_of_several_seeds(tmp_path: Path) -> None:
    runs = [
        read_run(RunWriter(tmp_path, f"base-{s}", BASELINE, seed=s).train([top1])) for s, top1 in enumerate((0.5, 0.6))
    ]
    comparison = compare(runs)
    assert cell(comparison, "best top-1", 0) == "55.0 ± 5.0 % (50.0 to 60.0)"
    assert comparison.leader is None
    assert comparison.titles == ("base",)
    assert "speed-up" not in [row.label for row in comparison.rows()]
    assert "no other schedule" in comparison.headline()


def test_some_seeds_do_not_reach(tmp_path: Path) -> None:
    runs = [RunWriter(tmp_path, f"base-{s}", BASELINE, seed=s).train([0.5, 0.6]) for s in (0, 1)]
    runs += [RunWriter(tmp_path, f"grid-{s}", MULTIGRID, seed=s).train([0.5, 0.6 - 0.1 * s]) for s in (0, 1)]
    comparison = compare([read_run(run) for run in runs])
    assert comparison.groups[1].reach().num_missed == 1
    assert "not reached in 1 of 2" in cell(comparison, "time to baseline's best", 1)
    assert "in 1 of 2 runs; the others do not reach it" in comparison.headline()


def test_folds_are_grouped_but_other_datasets_are_not(tmp_path: Path) -> None:
    runs = [RunWriter(tmp_path, f"words-fold{f}-base", BASELINE, data=f"fold{f}").train([0.5]) for f in (0, 1)]
    runs.append(RunWriter(tmp_path, "words-fold1-grid", MULTIGRID, data="fold1").train([0.5]))
    runs.append(RunWriter(tmp_path, "other", BASELINE, classes=7).train([0.5]))
    comparison = compare([read_run(run) for run in runs])
    assert [group.label for group in comparison.groups] == ["words-base", "words-fold1-grid", "other"]
    assert comparison.groups[1].results[0].partner.name == "words-fold1-base"


def test_without_a_constant_schedule_the_first_run_is_the_baseline(tmp_path: Path) -> None:
    runs = [RunWriter(tmp_path, "grid", MULTIGRID).train([0.5]), RunWriter(tmp_path, "slow", PROGRESSIVE).train([0.5])]
    assert [group.label for group in compare([read_run(run) for run in runs]).groups] == ["grid", "slow"]


def test_same_name_in_two_places(tmp_path: Path) -> None:
    runs = [RunWriter(tmp_path / "a", "run", BASELINE).train([0.5]), RunWriter(tmp_path / "b", "run", MULTIGRID).train([0.5])]  # fmt: skip
    assert [group.label for group in compare([read_run(run) for run in runs]).groups] == ["run", "b/run"]


def test_before_the_first_validation(tmp_path: Path) -> None:
    baseline = RunWriter(tmp_path, "baseline", BASELINE)
    baseline.steps(0, 3)
    multigrid = RunWriter(tmp_path, "multigrid", MULTIGRID)
    comparison = compare([read_run(baseline.folder), read_run(multigrid.folder)])
    assert comparison.headline() == "No comparison yet: baseline has no validation so far."
    assert cell(comparison, "final top-1", 1) == "-"
    assert any(note.startswith("Not finished: baseline, multigrid") for note in comparison.notes())


def test_notes_say_when_the_baseline_was_still_improving(tmp_path: Path) -> None:
    rising = compare([read_run(RunWriter(tmp_path, "rising", BASELINE).train([0.4, 0.5]))])
    level = compare([read_run(RunWriter(tmp_path, "level", BASELINE).train([0.5, 0.5]))])
    assert any("may not have stopped improving" in note for note in rising.notes())
    assert not any("may not have stopped improving" in note for note in level.notes())
    assert any("40 validation clips: one clip is 2.5 points" in note for note in level.notes())
    alone = compare([read_run(RunWriter(tmp_path, "grid", MULTIGRID).train([0.4, 0.5]))])
    assert any("a longer baseline might do better" in note for note in rising.notes())
    assert any("longer training might do better" in note for note in alone.notes())
    assert not any("a longer baseline" in note for note in alone.notes())


def test_a_run_that_is_named_twice_is_no_second_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunWriter(tmp_path, "run", BASELINE).train([0.5])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="run = 'run': is named twice"):
        compare([read_run(run), read_run("run")])


def test_print_comparison(tmp_path: Path) -> None:
    runs = [
        read_run(RunWriter(tmp_path, "base[1]", BASELINE).train([0.5])),
        read_run(RunWriter(tmp_path, "grid", MULTIGRID).train([0.5])),
    ]
    text = io.StringIO()
    print_comparison(runs, Console(file=text, width=140))
    assert "base[1] (baseline)" in text.getvalue()
    for row in compare(runs).rows():
        assert row.label in text.getvalue()
        assert all(cell in text.getvalue() for cell in row.cells)
    assert compare(runs).headline() in " ".join(text.getvalue().split())


def test_no_runs() -> None:
    with pytest.raises(DataError, match="names no run"):
        compare([])


def test_words() -> None:
    assert schedule_name(BASELINE) == "constant"
    assert schedule_name(MULTIGRID) == "long + short cycle"
    assert schedule_name(PROGRESSIVE) == "progressive"
    assert [magnitude(x) for x in (0, 999, 1234, 2.5e9)] == ["0", "999", "1.23 k", "2.5 G"]
    assert [percent(0.125), percent(float("nan")), points(-0.02)] == ["12.5 %", "-", "-2.0 points"]
    assert [spread([], seconds), spread([2.0], seconds), spread([1.0, 3.0], seconds)] == [
        "-",
        "2.0 s",
        "2.0 s (1.0 to 3.0)",
    ]
    assert spread([900.0, 1500.0], magnitude) == "1.2 k (900 to 1.5 k)"
    assert [seconds(x) for x in (0.0123, 12.34, 1234.5, 9000)] == ["0.012 s", "12.3 s", "1,234 s", "2.50 h"]
