"""Verdicts are files that trials obey; what earlier sessions saw counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mgray.plan import Plan
from mgray.tune.objective import Goal, Score
from mgray.tune.scheduler import Orderly, scheduler_of
from mgray.tune.trial import STOP, Search, Tail, report_of, run_name
from tests.unit.report.writer import RunWriter
from tune_spaces import Choice
from workloads import WORKLOADS, smoke

NUM_SAMPLES = 64
POINTS = {"lr": Choice({"own": {"plan.lr": 0.05}, "other": {"plan.lr": 0.01}})}


def search_in(folder: Path) -> Search:
    return Search(
        run=smoke(),
        space=POINTS,
        own={"lr": "own"},
        goal=Goal(objective="accuracy", budget=1.0),
        num_samples=NUM_SAMPLES,
        folder=folder,
    )


class Hashed(SimpleNamespace):
    """A trial, as far as schedulers look."""

    def __hash__(self) -> int:
        return hash(self.trial_id)


def trial(number: int, point: str = "other", status: str = "RUNNING") -> Any:
    return Hashed(trial_id=str(number), config={"lr": point}, status=status)


def tell(scheduler: Orderly, who: Any, cost: float, top1: float) -> None:
    result = dict(report_of(scheduler.search.goal, [Score(cost, top1)]))
    assert scheduler.on_trial_result(SimpleNamespace(get_live_trials=list), who, result) == "CONTINUE"


def stopped(search: Search) -> set[str]:
    return {path.parent.name for path in search.folder.glob(f"trials/*/{STOP}")}


def begun(name: Any, search: Search, count: int) -> tuple[Orderly, list[Any]]:
    scheduler = scheduler_of(name, search)
    scheduler.set_search_properties("value", "max")
    trials = [trial(number, "own" if number == 0 else "other") for number in range(count)]
    for one in trials:
        scheduler.on_trial_add(SimpleNamespace(), one)
    return scheduler, trials


def test_asha_ends_the_poorer_at_equal_cost_but_never_the_runs_own(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    scheduler, trials = begun("asha", search, 5)
    for one, top1 in zip(trials, (0.1, 0.5, 0.6, 0.2, 0.7), strict=True):
        tell(scheduler, one, 0.2, top1)  # before the first rung
    assert stopped(search) == set()
    for one, top1 in zip(trials, (0.1, 0.5, 0.6, 0.2, 0.7), strict=True):
        tell(scheduler, one, 0.26, top1)
    assert stopped(search) == {"trial_3"}
    tell(scheduler, trials[0], 0.6, 0.05)
    assert stopped(search) == {"trial_3"}
    verdict = json.loads((search.trial_folder("trial_3") / STOP).read_text())
    assert verdict == {"by": "asha", "cost": 0.26}


def test_the_median_rule_ends_what_is_below_the_median(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    scheduler, trials = begun("median", search, 5)
    for one, top1 in zip(trials, (0.4, 0.5, 0.6, 0.7, 0.1), strict=True):
        tell(scheduler, one, 0.2, top1)
        if top1 > 0.1:
            tell(scheduler, one, 0.3, top1)
    assert stopped(search) == set()
    tell(scheduler, trials[4], 0.3, 0.1)
    assert stopped(search) == {"trial_4"}


def test_none_ends_nothing(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    scheduler, trials = begun("none", search, 4)
    for one, top1 in zip(trials, (0.9, 0.8, 0.1, 0.0), strict=True):
        tell(scheduler, one, 0.9, top1)
    assert stopped(search) == set()


def test_a_search_that_is_taken_up_again_knows_the_trials_of_before(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    for number, top1 in enumerate((0.8, 0.9)):
        run = search.trial(run_name(str(number)), search.own)
        writer = RunWriter(tmp_path / "trials", run.name, run.plan)
        writer.plan = Plan.compile(run.plan, NUM_SAMPLES)
        writer.event(0, "start", "1 workers on cpu")
        writer.validate(writer.plan.num_steps // 3, top1)
        writer.event(5, "finish")
        assert [score.top1 for score in search.scores(run.name)] == [top1]
    scheduler = scheduler_of("asha", search)
    scheduler.set_search_properties("value", "max")
    for number in (0, 1):
        scheduler.on_trial_add(SimpleNamespace(), trial(number, "own", status="TERMINATED"))
    scheduler.on_trial_add(SimpleNamespace(), late := trial(2))
    tell(scheduler, late, 0.3, 0.5)
    assert stopped(search) == {"trial_2"}


def test_trials_are_compared_at_one_cost(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    search = dataclasses.replace(search, run=WORKLOADS["demo"]())
    short = dataclasses.replace(search, goal=Goal(objective="accuracy", budget=0.5))
    run = short.trial("trial_x", {"lr": "other"})
    assert run.storage == str(tmp_path / "trials") and run.plan.lr == 0.01
    assert Plan.compile(run.plan, NUM_SAMPLES).voxels <= 0.5 * search.voxels
    free = dataclasses.replace(search, goal=Goal(objective="cost", budget=0.5, target=0.9))
    assert free.trial("trial_x", {"lr": "other"}).plan == dataclasses.replace(search.run.plan, lr=0.01)


def test_records_are_read_as_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []
    line = '{"kind": "eval", "step": %d, "top1": %s}\n'
    path.write_text(line % (4, 0.5) + '{"kind": "step", "step": 5}\n' + '{"kind": "eval", "st')
    assert list(tail.read()) == [(4, 0.5)]
    path.write_text(
        path.read_text() + 'ep": 8, "top1": 0.75}\n{"kind": "eval", torn\n' + line % (8, 0.7) + line % (12, 0.8)
    )
    assert list(tail.read()) == [(8, 0.75), (12, 0.8)]
    assert list(tail.read()) == []


@pytest.mark.parametrize(("wanted", "fit"), [(0, 4), (3, 3)])
def test_trials_at_once_keep_to_the_cluster(monkeypatch: pytest.MonkeyPatch, wanted: int, fit: int) -> None:
    from mgray.errors import ConfigError
    from mgray.tune import search as module

    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 16.0})
    run = smoke()
    run = dataclasses.replace(run, scale=dataclasses.replace(run.scale, workers=2))
    assert module.cpus_of(run) == 4  # two workers, a decoder beside each
    assert module.fitting(run, wanted) == fit
    assert module.decoders_of(run, 4) == 1 and module.decoders_of(run, 1) == 7
    with pytest.raises(ConfigError, match="are more than the cluster holds"):
        module.fitting(run, 5)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0})
    assert module.fitting(run, 0) == 2
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 1.0})
    with pytest.raises(ConfigError, match=r"--scale\.gpu no where GPUs are too few"):
        module.fitting(run, 0)  # its two workers would wait for a GPU each
