"""What a step takes at each shape of a schedule: a rank's share as `mgray train` computes it, beside the plain module.

Ours takes bytes from host memory: upload, normalisation, grouped batch norm, the update and running statistics are in its time.
The plain module has torch's batch norm over the whole share, contiguous tensors, eager float32 as torch sets it up, torch's SGD, and
gets normalised clips that lie on the device. Nothing is reduced over ranks. Both lie on the device all the time; what the other holds
is not counted in a side's memory, and on a GPU a pass before the timed one takes the allocator from the other's blocks to its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from mgray.config import Run
from mgray.data.source import Block
from mgray.errors import ConfigError
from mgray.model import DEPTHS, MODELS, build_model
from mgray.model.dropout import convert_dropout
from mgray.model.flops import CLASSES, ModelCost
from mgray.model.norm import defer_running_stats
from mgray.plan import BatchShape, Plan, share_of
from mgray.train.compile import channels_last
from mgray.train.memory import out_of_memory
from mgray.train.optimizer import build_optimizer
from mgray.train.session import LocalSession
from mgray.train.step import Worker

SAMPLES = 240_436
"""Clips of a data set large enough for every shape of a schedule to have steps."""
PEAKS: tuple[tuple[str, float | None, float | None, float], ...] = (
    (r"\bGB200\b", 2500.0, 1250.0, 80.0),
    (r"\bB200\b", 2250.0, 1125.0, 75.0),
    (r"\bH[12]00 NVL\b", 835.0, 417.0, 60.0),
    (r"\bG?H200\b", 989.0, 494.0, 67.0),
    (r"\bH100 PCIe\b", 756.0, 378.0, 51.0),
    (r"\bH100\b", 989.0, 494.0, 67.0),
    (r"\bA100\b", 312.0, 156.0, 19.5),
    (r"\bA10G\b", 70.0, 35.0, 31.2),
    (r"\bA10\b", 125.0, 62.5, 31.2),
    (r"\bL40S\b", 362.0, 183.0, 91.6),
    (r"\bL4\b", 121.0, 60.0, 30.3),
    (r"\bV100S-PCIE\b", None, None, 16.4),
    (r"\bV100-PCIE\b", None, None, 14.0),
    (r"\bV100\b", None, None, 15.7),
    (r"\bT4\b", None, None, 8.1),
)
"""TFLOP/s of GPUs without sparsity, as in NVIDIA's data sheets: name, bfloat16, TF32, float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Operations a second that a device could do at most, and where that number is from."""

    flops: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One way to compute a step."""

    seconds: float
    """Median over the rounds."""
    rounds: int
    """Those that were timed."""
    peak_gib: float | None
    """Memory allocated at most; None on a CPU, where torch does not count it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """A batch's step on one rank; `plain` is None where the plain module ran out of memory."""

    batch: BatchShape
    clips: int
    """Of the rank's share."""
    groups: int
    at_once: int
    """BN groups of one micro-batch at most."""
    flops: float
    ours: Timed
    plain: Timed | None

    def to_json(self, peak: Peak) -> dict[str, Any]:
        seconds, voxels = self.ours.seconds, self.clips * self.batch.clip.voxels
        return {
            "batch": str(self.batch), "clips_of_rank": self.clips, "bn_groups_of_rank": self.groups, "groups_at_once": self.at_once,
            "rounds": self.ours.rounds, "ms": 1e3 * seconds, "clips_per_s": self.clips / seconds, "voxels_per_s": voxels / seconds,
            "peak_gib": self.ours.peak_gib, "flops": self.flops, "flops_per_s": self.flops / seconds,
            "share_of_peak": self.flops / seconds / peak.flops,
            "plain_ms": None if self.plain is None else 1e3 * self.plain.seconds,
            "plain_peak_gib": None if self.plain is None else self.plain.peak_gib,
            "over_plain": None if self.plain is None else self.plain.seconds / seconds,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBench:
    """Step times of a workload's schedule and its baseline's."""

    device: str
    model: str
    settings: dict[str, Any]
    """Of the model, `ModelSection`."""
    workers: int
    precision: str
    compiled: bool
    rounds: int
    peak: Peak
    steps: tuple[StepTime, ...]
    left: tuple[BatchShape, ...] = ()
    """Batches that were not measured: the budget was used up, or the bench interrupted."""
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """`mgray plan NAME --step-times FILE` reads it."""
        return {
            "device": self.device, "model": self.model, "settings": self.settings, "workers": self.workers, "precision": self.precision,
            "compile": self.compiled, "rounds": self.rounds,
            "peak": {"flops_per_s": self.peak.flops, "source": self.peak.source},
            "step_seconds": {str(step.batch): step.ours.seconds for step in self.steps},
            "shapes": [step.to_json(self.peak) for step in self.steps],
            "left": [str(batch) for batch in self.left], "interrupted": self.interrupted,
        }  # fmt: skip

    def table(self) -> Table:
        left = f"; not measured: {', '.join(map(str, self.left))}" if self.left else ""
        table = Table(
            *("batch", "clips", "ms", "clips/s", "Mvoxel/s", "GiB", "TFLOP/s", "of peak", "plain ms", "plain GiB", "faster"),
            title=f"{self.model}, {self.precision}{', compiled' if self.compiled else ''}: one of {self.workers} worker(s) on {self.device}",
            caption=f"peak: {self.peak.flops / 1e12:.3g} TFLOP/s ({self.peak.source}); GiB n/a: torch does not count it on CPUs{left}",
        )  # fmt: skip
        for column in table.columns[1:]:
            column.justify = "right"
        for step in self.steps:
            row, plain = step.to_json(self.peak), step.plain
            cells = [f"{row['ms']:.1f}", f"{row['clips_per_s']:.1f}", f"{row['voxels_per_s'] / 1e6:.2f}"]
            cells += [_gib(step.ours), f"{row['flops_per_s'] / 1e12:.3g}", f"{100 * row['share_of_peak']:.0f} %"]
            cells += (
                ["no memory", "", ""]
                if plain is None
                else [f"{row['plain_ms']:.1f}", _gib(plain), f"{row['over_plain']:.2f}x"]
            )
            table.add_row(str(step.batch), str(step.clips), *cells)
        return table


def _gib(timed: Timed) -> str:
    return "n/a" if timed.peak_gib is None else f"{timed.peak_gib:.2f}"


def batches_of(run: Run, scale_down: int = 1) -> dict[BatchShape, int]:
    """BN groups of every batch of a workload's schedule and its baseline's, the smallest first; clips divided by `scale_down`."""
    plan = Plan.compile(run.plan, SAMPLES)
    found = {}
    for phase in (*plan.phases, *plan.baseline().phases):
        for batch in phase.batches:
            smaller = dataclasses.replace(batch, clips=max(1, batch.clips // scale_down))
            found[smaller] = max(1, phase.bn_groups // scale_down)
    return dict(sorted(found.items(), key=lambda item: (item[0].voxels, item[0].clips)))


def device_of(device: str) -> torch.device:
    """The device that `--device` names: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        ConfigError: torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", device, "is not here (torch sees no GPU)", "give --device cpu")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


def name_of(device: torch.device) -> str:
    """A device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


def measure(
    run: Run, device: str, *, workers: int, rounds: int, scale_down: int, budget_s: float = math.inf
) -> StepBench:
    """Measure every batch of a workload, with a progress bar on a terminal; what is done by an interrupt is kept.

    Args:
        device: cpu, cuda, or auto for a GPU where there is one.
        budget_s: Seconds after which no further batch is begun, and none has a further round (the first has one in any case).

    Raises:
        ConfigError: torch sees no GPU.
        KeyboardInterrupt: before the first batch was measured.
    """
    deadline = time.monotonic() + budget_s
    place = device_of(device)
    precision = run.train.precision
    if precision == "bfloat16" and place.type == "cpu":
        precision = "float32"  # as in training
    console = Console(stderr=True)
    wanted, steps, interrupted = tuple(batches_of(run, scale_down)), [], False
    peak = peak_of(place, precision, run.train.tf32)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        found = bench_step(run, place, workers=workers, rounds=rounds, scale_down=scale_down, deadline=deadline)
        try:
            for step in bar.track(found, total=len(wanted), description="step"):
                steps.append(step)
        except KeyboardInterrupt:
            if not steps:
                raise
            interrupted = True
    depth = f" depth {run.model.depth} width {run.model.width}" if run.model.name in DEPTHS else ""
    return StepBench(
        device=name_of(place), model=run.model.name + depth, settings=dataclasses.asdict(run.model), workers=workers, precision=precision, compiled=run.train.compile,
        rounds=rounds, peak=peak, steps=tuple(steps), left=wanted[len(steps) :], interrupted=interrupted,
    )  # fmt: skip


def bench_step(
    run: Run, device: torch.device, *, workers: int, rounds: int, scale_down: int = 1, deadline: float = math.inf
) -> Iterator[StepTime]:
    """Measure the largest share that one of `workers` ranks has of each batch, ours and plain in turn.

    After the `deadline` (of `time.monotonic`) no further batch is begun, nor a further round of one.
    """
    torch.manual_seed(0)
    as_found = Kernels.now()
    model = convert_dropout(build_model(run.model, CLASSES))
    defer_running_stats(model)
    if run.train.channels_last:
        model = channels_last(model)
    session = LocalSession(Path("unused"), device=device)
    worker = Worker(session.prepare(model).train(), session, run.data, run.train)
    optimizer = build_optimizer(worker.module, run.train)
    own_kernels = Kernels.now()
    plain = MODELS[run.model.name](run.model, CLASSES).to(device).train()
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    cost = ModelCost(run.model, CLASSES)
    for number, (batch, bn_groups) in enumerate(batches_of(run, scale_down).items()):
        if number and time.monotonic() >= deadline:
            return
        shares = [share_of(rank, workers, batch.clips, bn_groups) for rank in range(workers)]
        share = max(shares, key=lambda share: len(share.clips))
        clips, groups = len(share.clips), len(share.groups)
        mine = dataclasses.replace(batch, clips=clips)
        block = _block(mine)
        floats, labels = worker.clips(block).contiguous(), torch.from_numpy(block.labels_N.copy()).to(device)
        keys = torch.arange(clips)
        own_kernels.set()
        worker.warm_up(mine, groups)

        def ours(
            block: Block = block, mine: BatchShape = mine, groups: int = groups, keys: torch.Tensor = keys
        ) -> None:
            worker.step(block, mine, groups, keys, optimizer)

        def theirs(floats: torch.Tensor = floats, labels: torch.Tensor = labels) -> None:
            plain_optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(plain(floats), labels).backward()  # type: ignore[no-untyped-call]
            plain_optimizer.step()

        sides = (
            Side(ours, own_kernels, lambda: held_by(worker.module, optimizer)),
            Side(theirs, as_found, lambda floats=floats: floats.nbytes + held_by(plain, plain_optimizer)),  # type: ignore[misc]
        )
        own, other = _in_turn(sides, device, rounds, deadline)
        assert own is not None
        parts = worker.micro_batches(mine, groups)
        yield StepTime(
            batch=batch, clips=clips, groups=groups, at_once=max(len(part.groups.sizes) for part in parts),
            flops=clips * cost.clip_flops(batch.clip), ours=own, plain=other,
        )  # fmt: skip


def _block(shape: BatchShape) -> Block:
    count = np.arange(shape.clips)
    size = (shape.clips, shape.frames, shape.height, shape.width, 3)
    return Block(0, 0, np.random.default_rng(0).integers(0, 256, size, np.uint8), count % CLASSES, count, count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """torch's choice of kernels, which holds for the whole process."""

    benchmark: bool
    tf32: bool
    matmul: str

    @classmethod
    def now(cls) -> Kernels:
        cudnn = torch.backends.cudnn
        return cls(benchmark=cudnn.benchmark, tf32=cudnn.allow_tf32, matmul=torch.get_float32_matmul_precision())

    def set(self) -> None:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = self.benchmark, self.tf32
        torch.set_float32_matmul_precision(self.matmul)


@dataclass(frozen=True, slots=True)
class Side:
    """One way to compute a step."""

    step: Callable[[], None]
    kernels: Kernels
    held: Callable[[], int]
    """Bytes that it has on the device between two steps."""


def held_by(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients, buffers and the optimizer's state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in tensors)


def _in_turn(
    sides: tuple[Side, Side], device: torch.device, rounds: int, deadline: float
) -> tuple[Timed | None, Timed | None]:
    """Time two ways to compute in turn, the first pass of each left out; None for the second where memory runs out.

    After the `deadline` there is no further round than the first.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    peaks: list[float | None] = [None, None]
    fits = [True, True]
    cuda = device.type == "cuda"
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() >= deadline:
            break
        for which, side in enumerate(sides):
            if not fits[which]:
                continue
            side.kernels.set()
            try:
                if cuda:
                    side.step()
                    torch.cuda.synchronize(device)
                    torch.cuda.reset_peak_memory_stats(device)
                started = time.perf_counter()
                side.step()
                if cuda:
                    torch.cuda.synchronize(device)
            except RuntimeError as error:
                if which == 0 or not out_of_memory(error):
                    raise
                fits[which] = False
                continue
            if number:
                seconds[which].append(time.perf_counter() - started)
            if cuda:
                peaks[which] = (torch.cuda.max_memory_allocated(device) - sides[1 - which].held()) / 2**30
    own, other = (
        Timed(seconds=statistics.median(times), rounds=len(times), peak_gib=peak) if fit else None
        for times, peak, fit in zip(seconds, peaks, fits, strict=True)
    )
    return own, other


def known_peak(name: str, precision: str, tf32: bool) -> Peak | None:
    """A GPU's peak by its name; None where the data sheet has no such arithmetic or the name is unknown or that of a part (MIG)."""
    if precision == "float64" or " MIG " in name:
        return None
    for pattern, bfloat16, tensor32, float32 in PEAKS:
        if re.search(pattern, name):
            kind, peak = (
                ("bfloat16", bfloat16) if precision == "bfloat16" else ("TF32", tensor32) if tf32 else ("float32", None)
            )
            if peak is None and precision != "bfloat16":
                kind, peak = "float32", float32
            return None if peak is None else Peak(flops=peak * 1e12, source=f"data sheet, dense {kind}")
    return None


def peak_of(device: torch.device, precision: str, tf32: bool) -> Peak:
    """A device's peak: from the data sheet of a known GPU, else that of a product of square matrices, measured now."""
    if device.type == "cuda" and (known := known_peak(torch.cuda.get_device_name(device), precision, tf32)) is not None:
        return known
    kinds = {"float64": torch.float64, "bfloat16": torch.bfloat16 if device.type == "cuda" else torch.float32}
    dtype = kinds.get(precision, torch.float32)
    size = 8192 if device.type == "cuda" else 2048
    matrix, best = torch.ones(size, size, dtype=dtype, device=device), 0.0
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return Peak(flops=best, source=f"measured, {size} x {size} {str(dtype).removeprefix('torch.')} matrices")
