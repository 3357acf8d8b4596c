"""What the loop costs: the Ray-fed loop beside a bare torch loop of the same model on tensors already in memory.

Decoding is taken off: blocks are cached where they are decoded, so that what remains is Ray Data, the object store, the
loop's checks and records, and the conversion of clips. The bare loop runs twice, with the model as it is and with plain
batch norm in it, so that what grouped batch norm costs stands apart.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from mgray.config import Run
from mgray.data.feed import GridDataConfig, quiet_ray_data
from mgray.data.ingest import ingest
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, ClipSource
from mgray.data.synthetic import write_motion_videos
from mgray.driver import start_driver
from mgray.model import MODELS, build_model
from mgray.model.norm import defer_running_stats, set_groups
from mgray.plan import Plan, share_of
from mgray.plan.state import ScheduleState
from mgray.train.compile import channels_last
from mgray.train.loop import Loop
from mgray.train.optimizer import build_optimizer
from mgray.train.session import FEED, RaySession
from mgray.train.step import Worker
from mgray.trainer import ray_running
from workloads import find

CLASSES = 4


@dataclass(frozen=True, slots=True)
class CachedSource:
    """The blocks of a plan without their decoding: one array for each size, made once in each decode worker."""

    plan: Plan

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        step = self.plan.step_at(index)
        share = share_of(rank, world_size, step.shape.clips, step.bn_groups)
        if not share.clips:
            return None
        count, shape = len(share.clips), step.shape
        clips_NTHWC = _cached((count, shape.frames, shape.height, shape.width, 3))
        positions = np.arange(step.first_position + share.clips.start, step.first_position + share.clips.stop)
        return Block(index, 0, clips_NTHWC, positions % CLASSES, positions % self.plan.num_samples, positions)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        step = self.plan.step_at(index)
        return 3 * len(share_of(rank, world_size, step.shape.clips, step.bn_groups).clips) * step.shape.clip.voxels


_CACHE: dict[tuple[int, ...], np.ndarray] = {}


def _cached(shape: tuple[int, ...]) -> np.ndarray:
    if shape not in _CACHE:
        _CACHE[shape] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return _CACHE[shape]


class CachedLoop(Loop):
    """The loop, fed from cached blocks."""

    def source(self) -> ClipSource:
        return CachedSource(self.plan)


class BenchSession(RaySession):
    """A Ray worker that neither resumes nor saves."""

    @contextmanager
    def load(self) -> Iterator[list[Path]]:
        yield []

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any], *, wait: bool = True) -> None:
        pass


def bench_loop(*, workers: int = 1, rounds: int = 5, workload: str = "demo") -> dict[str, Any]:
    """Measure both loops over the same short multigrid schedule, in turn, in the same workers.

    Returns:
        Steps per second of each round and loop; their ratio (fed over bare, of the same model: 1 is a loop that costs
        nothing) as median, least and most; the ratio of the bare loops (grouped over plain batch norm); and the share of
        the fed loop's time spent waiting for blocks.
    """
    found = find(workload)
    assert found is not None, f"{workload} is no workload"
    run = found
    # every shape of the schedule in one lap of about 60 steps
    plan = dataclasses.replace(run.plan, epochs=2, lr_steps=(0, 1), lr_factors=(1.0, 0.1), warmup_epochs=0.0)
    train = dataclasses.replace(run.train, evals=1, precise_bn=0)
    run = dataclasses.replace(run, plan=plan, train=train, scale=dataclasses.replace(run.scale, workers=workers))
    with tempfile.TemporaryDirectory(prefix="mgray-bench-") as folder, ray_running(run):
        videos, shards = f"{folder}/videos", f"{folder}/shards"
        write_motion_videos(videos, classes=CLASSES, clips_per_class=90, frames=4, width=32, height=32)
        ingest(videos, shards)
        compiled = Plan.compile(run.plan, ShardSet.open(shards).num_samples("train"))
        driver = start_driver("bench", compiled, ScheduleState(compiled.digest()))
        config = {"run": run.to_json(), "shards": shards, "folder": folder, "rounds": rounds, "driver": driver}
        try:
            ray.train.torch.TorchTrainer(
                _work,
                train_loop_config=config,
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers, use_gpu=torch.cuda.is_available(), resources_per_worker={"CPU": run.scale.cpus}
                ),
                run_config=ray.train.RunConfig(name="bench", storage_path=folder),
                datasets={FEED: cast(Any, lambda: run.feed)},
                dataset_config=GridDataConfig(),
            ).fit()
        finally:
            ray.kill(driver)
        return _summary(json.loads(Path(folder, "bench.json").read_text()), run)


def _work(config: dict[str, Any]) -> None:
    quiet_ray_data()
    run, shards, folder = Run.from_json(config["run"]), ShardSet.open(config["shards"]), Path(config["folder"])
    torch.set_num_threads(run.scale.threads or max(1, int(run.scale.cpus)))
    session = BenchSession(config["driver"], folder)
    results = []
    for number in range(config["rounds"] + 1):
        loop = CachedLoop(run, session, shards, folder / f"round{number}", 0)
        bare_s, plain_s = (_bare(run, session, loop.plan, grouped=grouped) for grouped in (True, False))
        loop.train()
        waits = [json.loads(line) for line in (folder / f"round{number}" / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in waits if line["kind"] == "step"]
        results.append(
            {
                "steps": len(steps),
                "bare_s": bare_s,
                "plain_s": plain_s,
                "fed_s": steps[-1]["train_s"],
                "wait_s": sum(s["wait_s"] for s in steps),
            }
        )
    if session.rank == 0:
        # the first round warms up caches, threads and worker processes
        (folder / "bench.json").write_text(json.dumps(results[1:]))


def _bare(run: Run, session: RaySession, plan: Plan, *, grouped: bool) -> float:
    """Seconds of a plain loop: DDP, and normalised tensors that lie in memory; batch norm grouped as planned, or plain."""
    torch.manual_seed(0)
    model = build_model(run.model, CLASSES) if grouped else MODELS[run.model.name](run.model, CLASSES)
    if grouped:
        defer_running_stats(model)
    if run.train.channels_last:
        model = channels_last(model)
    model = session.prepare(model)
    optimizer = build_optimizer(model, run.train)
    worker = Worker(model, session, run.data, run.train)
    batches: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        count = len(share_of(session.rank, session.world_size, step.shape.clips, step.bn_groups).clips)
        key = (count, 3, step.shape.frames, step.shape.height, step.shape.width)
        if key not in batches:
            clips = torch.rand(key, device=session.device)
            layout = torch.channels_last_3d if run.train.channels_last else torch.contiguous_format
            batches[key] = clips.to(memory_format=layout), torch.arange(count, device=session.device) % CLASSES
    started = time.perf_counter()
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        count = len(share_of(session.rank, session.world_size, step.shape.clips, step.bn_groups).clips)
        clips, labels = batches[count, 3, step.shape.frames, step.shape.height, step.shape.width]
        for group in optimizer.param_groups:
            group["lr"] = step.lr
        if grouped:
            set_groups(worker.module, worker.micro_batches(step.shape, step.bn_groups)[0].groups)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(clips), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if grouped:
            worker.commit()
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _summary(results: list[dict[str, float]], run: Run) -> dict[str, Any]:
    ratios = [result["bare_s"] / result["fed_s"] for result in results]
    return {
        "workers": run.scale.workers,
        "model": f"{run.model.name} depth {run.model.depth} width {run.model.width}",
        "steps": results[0]["steps"],
        "bare_steps_per_s": [round(result["steps"] / result["bare_s"], 3) for result in results],
        "plain_norm_steps_per_s": [round(result["steps"] / result["plain_s"], 3) for result in results],
        "fed_steps_per_s": [round(result["steps"] / result["fed_s"], 3) for result in results],
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "norm_ratio_median": round(statistics.median(r["plain_s"] / r["bare_s"] for r in results), 4),
        "wait_share": round(statistics.median(r["wait_s"] / r["fed_s"] for r in results), 4),
    }
