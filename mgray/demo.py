"""The demo: one small model, trained by the baseline and by multigrid on the same clips, side by side."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from rich.console import Console

from mgray.check import check_input
from mgray.cluster import num_gpus
from mgray.config import Run
from mgray.data.shards.shard_set import ShardSet
from mgray.plan import PlanSpec
from mgray.report import print_comparison, read_run, write_report
from mgray.trainer import open_data, ray_running, train
from workloads import WORKLOADS

DEMO_CLIPS = 800
MAX_STRIDE = 8


def demo(*, data: str | None, out: Path, console: Console | None = None) -> Path:
    """Train both schedules on `data` (default: the clips that come with mgray); returns the report page.

    Raises:
        MgrayError: the data cannot be used.
    """
    console = console or Console()
    out = out.expanduser().absolute()
    runs = []
    for workload, schedule in (("demo_baseline", "baseline"), ("demo", "multigrid")):
        run = WORKLOADS[workload]()
        section = dataclasses.replace(run.data, path=str(Path(data or run.data.path).expanduser().absolute()))
        name = f"{Path(section.path).stem}_{schedule}"
        runs.append(dataclasses.replace(run, name=name, storage=str(out / "runs"), data=section))
    check_input(runs[0])
    folders = []
    with ray_running(runs[0]):
        if 0 < num_gpus() < runs[0].scale.max_workers:
            runs = [dataclasses.replace(run, scale=dataclasses.replace(run.scale, gpu="no")) for run in runs]
        shards = open_data(runs[0], console)
        console.print(
            f"{shards.num_samples('train')} clips to train on, {shards.num_samples('val')} to validate on, "
            f"{len(shards.classes)} classes; {runs[0].scale.workers} Ray workers",
            soft_wrap=True,
        )
        for run in runs:
            folders.append(train(fitted(run, shards) if data else run, console=console).folder)
    page = write_report(folders, out, command="make demo" if data is None else f"mgray demo --data {data}")
    print_comparison([read_run(folder) for folder in folders], console)
    console.print(f"\n{page}", soft_wrap=True)
    return page


def fitted(run: Run, shards: ShardSet) -> Run:
    """The demo's run for videos of another number and length: about as much training, clips that span more of a video."""
    total = shards.num_samples("train")
    lengths = [shards.info("train", i).num_frames for i in range(0, total, 1 + total // 500)]
    stride = max(1, min(MAX_STRIDE, round(statistics.median(lengths)) // run.plan.frames))
    return dataclasses.replace(run, plan=stretched(run.plan, total, stride))


def stretched(plan: PlanSpec, num_samples: int, stride: int) -> PlanSpec:
    """The plan with epochs, decays and warm-up multiplied so that about as many clips are trained on as in the demo."""
    epochs = max(len(plan.lr_steps) + 1, round(plan.epochs * DEMO_CLIPS / num_samples))
    return dataclasses.replace(
        plan,
        epochs=epochs,
        lr_steps=tuple(round(step * epochs / plan.epochs) for step in plan.lr_steps),
        warmup_epochs=plan.warmup_epochs * epochs / plan.epochs,
        stride=stride,
    )
