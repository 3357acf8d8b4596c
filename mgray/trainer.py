"""Run -> Ray Train: checks first, then data, then workers; and the records that a run leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from mgray.attempts import Attempts
from mgray.check import SHARDS_FOLDER, check_amendments, check_run, is_shards, run_folder, starts_afresh
from mgray.cluster import capacity, described, need_of, num_gpus
from mgray.config import Run
from mgray.control import announce, in_progress, own
from mgray.data.annotations import read_annotations
from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.feed import quiet_ray_data
from mgray.data.ingest import LEVELS, IngestProgress, ingest
from mgray.data.ingest_settings import VIDEOS_PER_SHARD
from mgray.data.levels import levels_of
from mgray.data.shards.manifest import MANIFEST, SOURCE, VERSION, Manifest
from mgray.data.shards.shard_set import ShardSet
from mgray.display import IngestDisplay, TrainDisplay, without_noise
from mgray.driver import start_driver
from mgray.errors import CheckpointError, ConfigError, MgrayError, TrainingError
from mgray.jsonfile import write_json
from mgray.plan import Plan
from mgray.plan.state import ScheduleState
from mgray.report.ending import read_ending
from mgray.train.checkpoint import begin_amended, schedule_so_far
from mgray.train.initial import initial_line
from mgray.train.kept import kept_in, newest_step

POLL_S = 0.5
LOCAL_RAY = {
    # without a dashboard nothing answers Ray's state API. Ray Train 2.60 asks it whether a controller lives, and waits 12 s for that at
    # the end of each attempt; at an address where nobody listens it is refused at once
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
    # nobody gives notice to the only node there is: a process less for each attempt
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment of a Ray of our own."""
_ours = False
"""Whether the Ray that runs is one that `ray_running` started here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Where a finished run's records are, and what it came to."""

    folder: Path
    steps: int
    train_s: float
    score: float
    """Of the last validation: top-1, or mAP where videos have several classes."""
    metric: str = "top-1"


def train(
    run: Run, *, amendments: ScheduleState | None = None, verbose: bool = False, console: Console | None = None
) -> TrainResult:
    """Train a run from its newest checkpoint to its end, on Ray.

    Starts a local Ray where none runs, and ends it afterwards. Data that is no shards yet is ingested first.

    Args:
        amendments: of its schedule, which the run begins with.

    Raises:
        MgrayError: bad input (before Ray starts), or what kept the run from its end.
    """
    console = console or Console()
    check_run(run)
    check_amendments(run, amendments)
    run = _absolute(run)
    folder = run_folder(run)
    if read_ending(folder).is_whole:
        console.print(
            f"{run.name} is trained to its end already ({folder}); give another --name to train it again",
            soft_wrap=True,
        )
        return _result(folder)
    with ray_running(run, verbose=verbose) as grows:
        gpus = num_gpus()
        need = need_of(run.scale, gpus, grows=grows)
        shards = open_data(run, console)
        plan = Plan.compile(run.plan, shards.num_samples("train"))
        _warn_of_upscaling(run, shards, console)
        _warn_of_memory(run, plan, console)
        if run.model.init and starts_afresh(run):
            console.print(f"{run.name}: {initial_line(run.model, len(shards.classes))}", soft_wrap=True)
        with in_progress(folder), _last_words(run, folder, console):
            if amendments is None or (folder / "run.json").is_file():
                schedule = schedule_so_far(folder, plan)
            else:
                schedule = begin_amended(folder, plan, amendments)
            _check_data(folder, run, shards)
            _write_records(folder, run, schedule.plan(plan), shards)
            driver = start_driver(run.name, plan, schedule, folder, 0 if grows else capacity(need))
            announce(folder)
            try:
                with TrainDisplay(run.name, console) as display, _watching(driver, display):
                    display.say(described(need, run.scale, gpus, grows=grows))
                    attempts = Attempts(
                        run=run, folder=folder, shards=shards.root, driver=driver, need=need, say=display.say, grows=grows
                    )  # fmt: skip
                    stopped = attempts.work() == "stop"
            finally:
                ray.kill(driver)
    if stopped:
        console.print(
            f"{run.name}: stopped before step {newest_step(folder)} of {plan.num_steps}; the same command goes on from there ({folder})",
            soft_wrap=True,
        )
        return _result(folder, to_its_end=False)
    result = _result(folder)
    console.print(
        f"{run.name}: {result.metric} {100 * result.score:.1f} % after {result.steps} steps, {result.train_s:.0f} s of training ({folder})",
        soft_wrap=True,
    )
    return result


@contextlib.contextmanager
def _last_words(run: Run, folder: Path, console: Console) -> Iterator[None]:
    """Say how to go on where somebody or the loss of the cluster ends the run."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"{run.name}: interrupted; the same command goes on from step {newest_step(folder)} ({folder})",
            soft_wrap=True,
        )
        raise
    except ray.exceptions.RayError as error:
        if isinstance(error, MgrayError):  # one of ours that came out of an actor
            raise own(error) from None
        problem = f"lost its Ray cluster ({' '.join(str(error).split())[-300:]})"
        raise TrainingError(
            "run", run.name, problem, f"start it again: it goes on from step {newest_step(folder)}"
        ) from error


def _absolute(run: Run) -> Run:
    """A run whose workers find its initial weights wherever they work."""
    if not run.model.init:
        return run
    init = os.path.abspath(os.path.expanduser(run.model.init))
    return dataclasses.replace(run, model=dataclasses.replace(run.model, init=init))


@contextlib.contextmanager
def ray_running(run: Run, *, verbose: bool = False) -> Iterator[bool]:
    """Ray for as long as the context lasts: the one that runs, the cluster of `scale.address`, or a local one; whether it may get more nodes."""
    global _ours
    # a report waits until the controller has polled the one before
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        yield not _ours
        return
    joins = run.scale.address or os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as stack:
        if not joins:
            stack.enter_context(_defaults(LOCAL_RAY))
        _start_ray(run, joins, verbose)
        if not verbose:
            stack.enter_context(without_noise())
        _ours = not joins
        try:
            yield not _ours
        finally:
            _ours = False
            ray.shutdown()


def _start_ray(run: Run, joins: str, verbose: bool) -> None:
    """Join the Ray at the address `joins`, or start a local one where there is none."""
    options: dict[str, Any] = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    if joins:
        options["address"] = joins
    else:
        # decode tasks reserve nothing, but their processes count below
        wanted = run.scale.max_workers * (run.scale.cpus + max(1, run.feed.decoders))
        # "local": without it Ray joins whatever cluster was started on this machine last
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, math.ceil(wanted)),
            "include_dashboard": False,
        }
        # Ray ends idle processes above this number after a second; a decode process takes seconds to start
        os.environ.setdefault("RAY_num_workers_soft_limit", str(8 + 4 * math.ceil(wanted)))
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not joins:
            raise
        raise ConfigError(
            "scale.address", joins, f"cannot be joined ({' '.join(str(error).split())})",
            "start Ray there (ray start --head), or leave it out for a local Ray",
        ) from None  # fmt: skip
    quiet_ray_data()


@contextlib.contextmanager
def _defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the context lasts, of which those that have a value keep it."""
    mine = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def open_data(run: Run, console: Console) -> ShardSet:
    """The run's shards; a folder or list of videos is ingested first, once for all runs of this storage.

    With `feed.source` "files" it is only indexed: its packets stay where they are.
    """
    path = run.data.path
    if not is_shards(path):
        source = str(Path(path).expanduser().absolute())
        levels = SOURCE if run.feed.source == "files" else run.data.levels or levels_of(run.plan, run.data.enlarge)
        videos = str(Path(run.data.videos).expanduser().absolute()) if run.data.videos else ""
        key = json.dumps([VERSION, source, levels, run.data.val_fraction, *([videos] if videos else [])])
        name = f"{Path(source).stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        path = str(run_folder(run).parent / SHARDS_FOLDER / name)
        ingest_with_progress(
            source,
            path,
            levels=levels,
            val_fraction=run.data.val_fraction,
            videos=videos,
            max_broken=run.data.max_broken,
            console=console,
        )
    elif "://" not in path:
        path = str(Path(path).expanduser().absolute())
    return ShardSet.open(path)


def ingest_with_progress(
    source: str,
    out: str,
    *,
    levels: Sequence[int] = LEVELS,
    val_fraction: float = 0.2,
    videos: str = "",
    max_broken: float = 0.01,
    limit_s: float = DECODE_LIMIT_S,
    videos_per_shard: int = VIDEOS_PER_SHARD,
    console: Console | None = None,
) -> Manifest:
    """Ingest with a progress bar, or a line now and then where there is no terminal; starts a local Ray where none runs.

    Raises:
        DataError: the source cannot be used, or too many of its videos are broken.
    """
    console = console or Console()
    read_annotations(source, val_fraction=val_fraction, videos=videos)
    with ray_running(Run()), IngestDisplay(console) as display:

        def show(progress: IngestProgress) -> None:
            display.update(progress.done, progress.total, progress.broken)

        manifest = ingest(
            source, out, levels=levels, val_fraction=val_fraction, videos=videos, max_broken=max_broken, limit_s=limit_s,
            videos_per_shard=videos_per_shard, on_progress=show,
        )  # fmt: skip
    if manifest.broken:
        first = manifest.broken[0]
        console.print(
            f"mgray: warning: {len(manifest.broken)} videos do not decode and were left out, "
            f"e.g. {first.path} ({first.reason}); all are listed in {out}/{MANIFEST}",
            soft_wrap=True,
        )
    return manifest


def _warn_of_upscaling(run: Run, shards: ShardSet, console: Console) -> None:
    smallest = min(
        min(info.width, info.height)
        for info in (shards.info("train", i) for i in range(0, shards.num_samples("train"), 1 + shards.num_samples("train") // 1000))
    )  # fmt: skip
    if smallest < run.plan.crop:
        console.print(
            f"mgray: warning: plan.crop = {run.plan.crop} is larger than the short side of some videos ({smallest} pixels); "
            "they are enlarged, a smaller --plan.crop trains faster on the same detail",
            soft_wrap=True,
        )


def _warn_of_memory(run: Run, plan: Plan, console: Console) -> None:
    """Warn where a pipeline's two steps, its least, are more than the feed may hold."""
    last = plan.step_at(plan.num_steps - 1).shape  # the voxels of others are nearly as many
    share_gib = 3 * last.clips * last.clip.voxels / run.scale.min_workers / 2**30
    if 2 * share_gib > run.feed.ahead_gib:
        console.print(
            f"mgray: warning: feed.ahead_gib = {run.feed.ahead_gib:g} is less than a worker's clips of two steps ({2 * share_gib:.2g} GiB), "
            f"the least that a pipeline has; two of them are open at once, {4 * share_gib:.2g} GiB a worker",
            soft_wrap=True,
        )


def _write_records(folder: Path, run: Run, plan: Plan, shards: ShardSet) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "classes": list(shards.classes),
        "multi_label": shards.multi_label,
        "num_train": shards.num_samples("train"),
        "num_val": shards.num_samples("val"),
        "digest": shards.digest(),
        "shards": shards.root,
        "broken": [(item.path, item.reason) for item in shards.manifest.broken],
    }
    for name, content in (("plan", plan.to_json()), ("data", data), ("run", run.to_json())):
        write_json(folder / f"{name}.json", content)


@contextlib.contextmanager
def _watching(driver: Any, display: TrainDisplay) -> Iterator[None]:
    """Keep a display up to date from a thread of its own, since fit() holds the main one."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            with contextlib.suppress(ray.exceptions.RayError):
                display.update(ray.get(driver.status.remote(), timeout=10))

    thread = threading.Thread(target=watch, daemon=True, name="mgray-display")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _check_data(folder: Path, run: Run, shards: ShardSet) -> None:
    """Refuse other data than a run's newest checkpoint was trained on, before the run's records say so.

    Raises:
        CheckpointError: it was trained on others.
    """
    found = [item for item in kept_in(folder) if item.data_digest]
    if found and found[0].data_digest != shards.digest():
        raise CheckpointError(
            "data.path", run.data.path, f"holds other data than {folder} was trained on", "give its data, or another --name"
        )  # fmt: skip


def _result(folder: Path, *, to_its_end: bool = True) -> TrainResult:
    ending = read_ending(folder)
    if to_its_end and not ending.is_finished:
        raise TrainingError(
            "run", folder.name, "ended before its schedule", "start it again: it goes on from its last checkpoint"
        )
    multi_label = json.loads((folder / "data.json").read_text())["multi_label"]
    return TrainResult(
        folder=folder,
        steps=ending.steps,
        train_s=ending.train_s,
        score=ending.score,
        metric="mAP" if multi_label else "top-1",
    )
