"""What coordination costs a step, on up to thousands of ranks, without a model, a GPU or a cluster.

Everything between two steps runs as it does in training, on one rank after the other: plan, share, micro-batches, blocks out of a row of
the feed, checks, checksums, keys of dropout, sums, records, ledger, the driver's methods. The process group is torch's fake one, whose
collectives return at once: their time on the wire is not in the figures. Batches grow with the ranks (8 clips a rank), and steps are
drawn at random from the whole schedule.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mgray.config import Run
from mgray.data.clip import VideoInfo
from mgray.data.feed import _blocks_of, _row_of
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, TrainSource
from mgray.driver import ScheduleDriver
from mgray.ledger import LedgerWriter
from mgray.plan import Plan, Step
from mgray.plan.state import ScheduleState
from mgray.train.clips import clip_checksum, clip_keys
from mgray.train.loop import FLUSH_STEPS
from mgray.train.metrics import MetricsWriter
from mgray.train.session import LocalSession
from mgray.train.step import Worker

NUM_SAMPLES = 240_436
STEP_MS, GOAL = 300.0, 0.01
"""A step of the reference, and the share of it that coordination may take."""
CLIPS_A_RANK = 8
ROUNDS = 3
"""The fastest counts: other work on the machine only adds."""
PARTS = ("plan", "feed", "share", "sums", "records", "ledger", "driver")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleRow:
    """A world size's costs in milliseconds of a step, mean over steps and flushes."""

    ranks: int
    plan_steps: int
    """Steps of the whole schedule."""
    rank0_ms: float
    """On rank 0, which also keeps the records."""
    last_ms: float
    """On the last rank."""
    parts_ms: dict[str, float]
    """Rank 0's, by part."""
    specs_ms: float
    """To work out which frames and windows a rank decodes: in its decode tasks, beside training."""
    peak_mib: float
    """Python's memory at most, above that before the first step."""
    growth_bytes: float
    """Of Python's memory a step, over the second half of the steps."""
    rss_mib: float

    @property
    def critical_ms(self) -> float:
        return max(self.rank0_ms, self.last_ms)

    def to_json(self) -> dict[str, Any]:
        share = self.critical_ms / STEP_MS
        return {**dataclasses.asdict(self), "critical_ms": self.critical_ms, "share_of_300_ms": share}


class _Videos:
    """A dataset of Kinetics' size."""

    def info(self, split: str, sample: int) -> VideoInfo:
        return VideoInfo(300, 340, 256, 30.0)


@dataclass
class _FakeSession(LocalSession):
    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        return cast(dist.ProcessGroup, dist.new_group(list(ranks)))


def plan_of(run: Run, ranks: int) -> Plan:
    """The run's schedule with its batch for so many ranks."""
    spec = dataclasses.replace(run.plan, batch=CLIPS_A_RANK * ranks, lr=run.plan.lr)
    return Plan.compile(spec, NUM_SAMPLES)


def bench_scale(run: Run, ranks: Sequence[int], steps: int) -> list[ScaleRow]:
    """Measure each world size at `steps` random steps."""
    return [_measure(run, count, steps) for count in ranks]


def _measure(run: Run, ranks: int, steps: int) -> ScaleRow:
    plan = plan_of(run, ranks)
    chosen = random.Random(0).sample(range(plan.num_steps), min(steps, plan.num_steps))
    with tempfile.TemporaryDirectory() as folder:
        rounds = range(ROUNDS)
        last = min(sum(_walk(run, plan, chosen, ranks - 1, ranks, Path(folder) / f"last{i}").values()) for i in rounds)
        parts = min(
            (_walk(run, plan, chosen, 0, ranks, Path(folder) / f"first{i}") for i in rounds),
            key=lambda parts: sum(parts.values()),
        )
        tracemalloc.start()
        try:
            marks = np.zeros(len(chosen), np.int64)
            _walk(run, plan, chosen, 0, ranks, Path(folder) / "traced", marks)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    half = len(marks) // 2
    growth = float(np.median(marks[-8:]) - np.median(marks[half : half + 8])) / max(1, half - 8)
    return ScaleRow(
        ranks=ranks, plan_steps=plan.num_steps, rank0_ms=sum(parts.values()), last_ms=last, parts_ms=parts,
        specs_ms=_specs_ms(run, plan, chosen[:32], ranks), peak_mib=(peak - marks[0]) / 2**20, growth_bytes=growth,
        rss_mib=_rss_mib(),
    )  # fmt: skip


def _walk(
    run: Run,
    plan: Plan,
    chosen: Sequence[int],
    rank: int,
    ranks: int,
    folder: Path,
    marks: npt.NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """One rank's steps; milliseconds a step of each part."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        spent = dict.fromkeys(PARTS, 0.0)
        clock = _Clock(spent)
        session = _FakeSession(folder, rank=rank, world_size=ranks)
        worker = Worker(nn.Identity(), session, run.data, run.train)
        source = TrainSource(cast(ShardSet, _Videos()), plan, run.train.seed, run.data.fps, run.data.flip)
        records = MetricsWriter(folder, 0) if rank == 0 else None
        ledger = LedgerWriter(folder, 0, 0, 0) if rank == 0 else None
        state = ScheduleState(plan.digest())
        driver = ScheduleDriver(plan, state)
        for phase in plan.phases:  # process groups are made once for each shape
            for batch in phase.batches:
                worker.micro_batches(batch, phase.bn_groups)
        done: list[tuple[Step, torch.Tensor]] = []
        for number, index in enumerate(chosen):
            table = _row(source, index, rank, ranks)
            if marks is not None:
                marks[number] = tracemalloc.get_traced_memory()[0]
            clock.start()
            step = plan.step_at(index)
            clock.charge("plan")
            block = next(_blocks_of(table))
            if block is not None:
                assert block.index == index and int(block.positions_N[0]) in step.positions
            checksum = 0.0 if block is None else clip_checksum(block)
            clip_keys(block, run.train.seed)
            clock.charge("feed")
            worker.micro_batches(step.shape, step.bn_groups)
            clock.charge("share")
            sums = torch.zeros(2, dtype=torch.float64)
            done.append((step, torch.cat([sums, sums.new_tensor([checksum, 0])])))
            if len(done) == FLUSH_STEPS:
                stacked = torch.stack([sums for _, sums in done])
                dist.all_reduce(stacked)
                rows = stacked.tolist()
                clock.charge("sums")
                if records is not None and ledger is not None:
                    for (each, _), row in zip(done, rows, strict=True):
                        records.step(
                            each, loss=1.0, top1=0.5, checksum=int(row[2]), step_s=0.3, wait_s=0.0, train_s=1.0
                        )
                    records.flush()
                    clock.charge("records")
                    for (each, _), row in zip(done, rows, strict=True):
                        ledger.append(each, version=0, world_size=ranks, checksum=int(row[2]), substituted=0)
                    ledger.flush()
                    clock.charge("ledger")
                    asyncio.run(_talk(driver, state, index))
                    clock.charge("driver")
                done.clear()
            else:
                clock.charge("sums")
        if records is not None and ledger is not None:
            records.close()
            ledger.close()
        return {name: 1e3 * seconds / len(chosen) for name, seconds in spent.items()}
    finally:
        dist.destroy_process_group()


class _Clock:
    """Adds up seconds by part."""

    def __init__(self, spent: dict[str, float]) -> None:
        self._spent, self._last = spent, 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def charge(self, part: str) -> None:
        now = time.perf_counter()
        self._spent[part] += now - self._last
        self._last = now


async def _talk(driver: ScheduleDriver, state: ScheduleState, step: int) -> None:
    """What a flush says to the driver; `sync` happens only where there is news, here each time."""
    await driver.show({"step": step}, state, step)
    await driver.sync(state, step)


def _row(source: TrainSource, index: int, rank: int, ranks: int) -> pa.Table:
    """The rank's row of a step as the feed delivers it, with clips of one pixel."""
    step = source.plan.step_at(index)
    positions = np.array(step.positions, np.int64)[_slice(source, step, rank, ranks)]
    block = (
        Block(index, 0, np.zeros((len(positions), 1, 1, 1, 3), np.uint8), positions, positions, positions)
        if len(positions)
        else None
    )
    row = _row_of([index], [block])
    return pa.table({name: [value[0] if value.dtype == object else value[0].tolist()] for name, value in row.items()})


def _slice(source: TrainSource, step: Step, rank: int, ranks: int) -> slice:
    clips = source._share(step, rank, ranks).clips
    return slice(clips.start, clips.stop)


def _specs_ms(run: Run, plan: Plan, chosen: Sequence[int], ranks: int) -> float:
    source = TrainSource(cast(ShardSet, _Videos()), plan, run.train.seed, run.data.fps, run.data.flip)
    started = time.perf_counter()
    for index in chosen:
        source.clips(index, ranks - 1, ranks)
    return 1e3 * (time.perf_counter() - started) / len(chosen)


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def print_scale(rows: Sequence[ScaleRow], steps: int) -> None:
    """A table, and whether the goal is met."""
    title = f"coordination of a step in ms, {steps} random steps, {CLIPS_A_RANK} clips a rank"
    table = Table(title=title, title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    head = ("ranks", "schedule", "rank 0", *PARTS, "last rank", "specs*", "peak MiB", "bytes/step", "RSS MiB")
    for name in head:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        parts = (f"{row.parts_ms[part]:.3f}" for part in PARTS)
        table.add_row(
            f"{row.ranks:,}", f"{row.plan_steps:,}", f"{row.rank0_ms:.2f}", *parts, f"{row.last_ms:.2f}", f"{row.specs_ms:.1f}",
            f"{row.peak_mib:.1f}", f"{row.growth_bytes:.0f}", f"{row.rss_mib:.0f}",
        )  # fmt: skip
    console = Console(width=None if Console().is_terminal else 130)
    console.print(table)
    console.print("* frames and windows of a rank's clips, in its decode tasks, beside training", highlight=False)
    for row in rows:
        if row.ranks == 128:
            share = row.critical_ms / STEP_MS
            console.print(
                f"at 128 ranks {row.critical_ms:.2f} ms, {100 * share:.2f} % of a step of {STEP_MS:.0f} ms "
                f"(goal: {100 * GOAL:.0f} %): {'met' if share <= GOAL else 'missed'}", highlight=False,
            )  # fmt: skip
