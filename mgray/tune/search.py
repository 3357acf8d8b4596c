"""A search: Tune, Optuna and a scheduler over a run, its trials' records, and what comes of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from mgray.check import check_input
from mgray.config import AMENDMENTS, Run
from mgray.errors import ConfigError, TrainingError
from mgray.jsonfile import write_json
from mgray.plan.state import ScheduleState
from mgray.report.records import read_run
from mgray.train.checkpoint import read_schedule
from mgray.trainer import open_data, ray_running
from mgray.tune.objective import Score
from mgray.tune.scheduler import scheduler_of
from mgray.tune.settings import SearchSettings
from mgray.tune.space import Point, around, searched
from mgray.tune.trial import Search, run_name, run_trial
from mgray.tune.view import Progress, Relay, plot_pareto, print_trials
from tune_spaces import Choice, LogUniform, Space, Uniform

SETTINGS = "search.json"
BEST = "best.json"
PICTURE = "pareto.png"
EXPERIMENT = "tune"
TRIAL_CPU = 0.01
"""Of a trial's own process, which only waits (Tune wants some): its workers reserve what they use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one trial was, and what came of it."""

    name: str
    point: Point
    scores: tuple[Score, ...]
    train_s: float
    epochs: int | None
    """Of the schedule that it trained."""
    state: str
    """done, stopped (early), or failed."""
    began: float
    """Unix seconds."""


def search(
    run: Run, space: Space, settings: SearchSettings, *, verbose: bool = False, console: Console | None = None
) -> Trial:
    """Try points of a space around `run`, the run's own first; the same folder again goes on where that search stopped.

    Writes `best.json` (a run for `mgray train`, with its amendments), `pareto.png` and `trials.json` into the folder.

    Raises:
        MgrayError: bad input (before Ray starts), a folder that holds another search, or no trial that was validated.
    """
    console = console or Console()
    check_input(run)
    space, own = around(run, searched(space, settings.goal))
    out = settings.out.expanduser().absolute()
    check_folder(out, run, settings, space)
    largest = largest_trial(run, space)
    concurrent = begun_with(out) or settings.concurrent or max(1, int((os.cpu_count() or 1) // cpus_of(largest)))
    scale = dataclasses.replace(largest.scale, workers=largest.scale.max_workers * concurrent)
    with ray_running(dataclasses.replace(largest, scale=scale), verbose=verbose):
        concurrent = fitting(largest, begun_with(out) or settings.concurrent)
        storage = dataclasses.replace(run, storage=str(out))
        shards = open_data(storage, console)
        decoders = run.feed.decoders or decoders_of(largest, concurrent)
        base = dataclasses.replace(
            run,
            data=dataclasses.replace(run.data, path=shards.root),
            feed=dataclasses.replace(run.feed, decoders=decoders),
        )
        what = Search(
            run=base,
            space=space,
            own=own,
            goal=settings.goal,
            num_samples=shards.num_samples("train"),
            folder=out,
            metric="mAP" if shards.multi_label else "top-1",
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / SETTINGS).write_text(json.dumps({**described(run, settings, space), "concurrent": concurrent}, indent=1))
        console.print(
            f"{settings.trials} trials around {run.name} in space {settings.space}, {concurrent} at a time, "
            f"each of {largest.scale.max_workers} worker(s) and {decoders} decoder(s) beside each ({out})",
            soft_wrap=True,
        )
        with Progress(what, settings.trials, console) as progress:
            points = _tune(what, settings, concurrent, progress, verbose=verbose)
    trials = tuple(sorted((_trial(what, *point) for point in points), key=lambda trial: trial.began))
    return _conclude(run, what, trials, console)


def _tune(
    what: Search, settings: SearchSettings, concurrent: int, progress: Progress, *, verbose: bool
) -> list[tuple[str, Point, bool]]:
    """Names, points and failures of all trials, in the order in which they were begun."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints boxes even where it is to be quiet
    if not verbose:
        for name in ("ray.tune", "ray.train", "optuna"):
            logging.getLogger(name).setLevel(logging.ERROR)
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, search=what), {"CPU": TRIAL_CPU})
    path = str(what.folder / EXPERIMENT)
    scheduler = scheduler_of(settings.scheduler, what)
    if ray.tune.Tuner.can_restore(path):
        tuner = ray.tune.Tuner.restore(path, trainable, resume_unfinished=True, param_space=domains(what.space))
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=domains(what.space),
            tune_config=ray.tune.TuneConfig(
                metric="value",
                mode="max",
                search_alg=OptunaSearch(points_to_evaluate=[dict(what.own)], seed=what.run.train.seed),
                scheduler=scheduler,
                num_samples=settings.trials,
                max_concurrent_trials=concurrent,
            ),
            run_config=ray.tune.RunConfig(
                name=EXPERIMENT, storage_path=str(what.folder), verbose=2 if verbose else 0, callbacks=[Relay()]
            ),
        )
    results = tuner.fit()
    found = []
    for result in (results[number] for number in range(len(results))):
        if result.metrics and "trial_id" in result.metrics:
            found.append((run_name(result.metrics["trial_id"]), result.config or {}, result.error is not None))
    known = {name for name, *_ in found}
    # a trial that failed before its first validation has no metrics
    return found + [(name, point, True) for name, point in progress.points.items() if name not in known]


def domains(space: Space) -> dict[str, Any]:
    """The space in Tune's words."""
    found: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, Choice):
            found[name] = ray.tune.choice(list(domain.options))
        elif isinstance(domain, LogUniform):
            found[name] = ray.tune.loguniform(domain.low, domain.high)
        else:
            assert isinstance(domain, Uniform)
            found[name] = ray.tune.uniform(domain.low, domain.high)
    return found


def largest_trial(run: Run, space: Space) -> Run:
    """The run with the most workers that a trial may have: what has to fit."""
    options = (fields for domain in space.values() if isinstance(domain, Choice) for fields in domain.options.values())
    scales = [
        dataclasses.replace(run.scale, workers=fields.get("scale.workers", run.scale.workers)) for fields in options
    ]
    workers = max(scale.max_workers for scale in (run.scale, *scales))
    return dataclasses.replace(run, scale=dataclasses.replace(run.scale, workers=workers))


def cpus_of(run: Run) -> float:
    """CPUs of a trial: its workers', and one for each decoder, which Ray does not reserve."""
    return run.scale.max_workers * (run.scale.cpus + max(1, run.feed.decoders))


def fitting(largest: Run, wanted: int) -> int:
    """Trials at once for which the cluster has room, decoding included: more would wait for each other's CPUs for ever.

    Raises:
        ConfigError: not even one fits, or not as many as wanted.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = int(resources.get("CPU", 0.0) // cpus_of(largest))
    gpus = int(resources.get("GPU", 0.0))
    if largest.scale.gpu == "yes" or (largest.scale.gpu == "auto" and gpus):
        most = min(most, gpus // largest.scale.max_workers)
    if max(1, wanted) > most:
        raise ConfigError(
            "concurrent", wanted, f"trials of {largest.scale.max_workers} workers and {cpus_of(largest):g} CPUs are more than the cluster holds ({most})",
            "ask for fewer, lower scale.workers, add nodes, or give --scale.gpu no where GPUs are too few",
        )  # fmt: skip
    return wanted or most


def decoders_of(largest: Run, concurrent: int) -> int:
    """Decoders for each worker so that all trials together keep to the cluster's CPUs."""
    cpus = float(ray.cluster_resources().get("CPU", 1.0))  # type: ignore[no-untyped-call]
    workers = largest.scale.max_workers
    return max(1, int((cpus / concurrent - workers * largest.scale.cpus) // workers))


def described(run: Run, settings: SearchSettings, space: Space) -> dict[str, Any]:
    """What makes a search the same search."""
    return {
        "run": run.digest(),
        "space": settings.space,
        "parameters": list(space),
        "trials": settings.trials,
        "scheduler": settings.scheduler,
        **dataclasses.asdict(settings.goal),
    }


def check_folder(out: Path, run: Run, settings: SearchSettings, space: Space) -> None:
    """Refuse a folder that holds another search.

    Raises:
        ConfigError: it names what differs.
    """
    stored = out / SETTINGS
    if not stored.is_file():
        return
    try:
        earlier, now = json.loads(stored.read_text()), described(run, settings, space)
        found = [f"{key} {earlier.get(key)} -> {now[key]}" for key in now if earlier.get(key) != now[key]]
    except (OSError, ValueError, AttributeError):
        found = ["it cannot be read"]
    if found:
        raise ConfigError("out", str(out), f"holds another search ({', '.join(found)})", "give another --out")


def begun_with(out: Path) -> int:
    """Trials at once in a search that is taken up again; Tune keeps to that number."""
    stored = out / SETTINGS
    return int(json.loads(stored.read_text())["concurrent"]) if stored.is_file() else 0


def _trial(what: Search, name: str, point: Point, failed: bool) -> Trial:
    scores = tuple(what.scores(name))
    if not scores:
        state = "failed" if failed else "stopped"
        return Trial(name=name, point=point, scores=(), train_s=0.0, epochs=None, state=state, began=math.inf)
    records = read_run(what.trial_folder(name))
    state = "failed" if failed else "done" if records.is_finished else "stopped"
    train_s, began = records.evals[-1].train_s, records.events[0].time
    epochs = what.epochs(name)
    return Trial(name=name, point=point, scores=scores, train_s=train_s, epochs=epochs, state=state, began=began)


def run_tree(run: Run, schedule: ScheduleState | None) -> dict[str, Any]:
    """A run as a tree for `mgray train`, with the amendments that it was given while it trained.

    Those that a run makes itself (for its number of workers, or where cycles are adaptive) alone are left out: it makes them again.
    """
    tree = run.to_json()
    if schedule is not None and any(amendment.key for amendment in schedule.amendments):
        tree[AMENDMENTS] = schedule.to_json()
    return tree


def _conclude(run: Run, what: Search, trials: tuple[Trial, ...], console: Console) -> Trial:
    """Write and print what the trials came to; returns the best."""
    scored = [trial for trial in trials if trial.scores and trial.state != "failed"]
    if not scored:
        raise TrainingError(
            "trials", len(trials), "were never validated", "see why with --verbose; Ray's session folder has their logs"
        )
    best = max(scored, key=lambda trial: (what.goal.value(trial.scores), -trial.scores[-1].cost))
    tuned = what.trial(best.name, best.point)
    named = dataclasses.replace(tuned, name=f"{run.name}_tuned", storage=run.storage, data=run.data, feed=run.feed)
    write_json(what.folder / BEST, run_tree(named, read_schedule(what.trial_folder(best.name))))
    (what.folder / "trials.json").write_text(
        json.dumps(
            [{**dataclasses.asdict(trial), "value": what.goal.value(trial.scores)} for trial in trials], indent=1
        )
    )
    curves = {trial.name: trial.scores for trial in trials if trial.scores}
    own = next((trial.name for trial in trials if trial.point == what.own), None)
    plot_pareto(curves, own=own, best=best.name, goal=what.goal, metric=what.metric, out=what.folder / PICTURE)
    print_trials(
        what,
        [(trial.name, trial.point, list(trial.scores), trial.state, trial.train_s, trial.epochs) for trial in trials],
        best.name,
        console,
    )
    console.print(
        f"\nbest: mgray train {what.folder / BEST}   picture: {what.folder / PICTURE}", soft_wrap=True, highlight=False
    )
    return best
