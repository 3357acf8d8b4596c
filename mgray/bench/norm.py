"""What grouped batch norm costs: forward and backward of `GroupedBatchNorm3d` and of `nn.BatchNorm3d` on the same tensor, in turn.

A group that spans ranks is measured too, on a process group of this process alone: all its work but what goes over a network.
Running statistics of the grouped norm are not in it: `commit_running_stats` updates those of all norms once a step.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from mgray.bench.step import device_of, name_of
from mgray.model.norm import BnGroups, GroupedBatchNorm3d

GROUP = 8
"""Clips of a BN group."""
GOAL = 1.15
"""Time of grouped batch norm over that of plain batch norm, at most."""
SHAPES = {
    "cpu": ((16, 64, 4, 7, 7), (64, 64, 4, 7, 7), (32, 64, 4, 14, 14), (32, 64, 8, 28, 28)),
    "cuda": ((64, 512, 4, 7, 7), (32, 256, 8, 28, 28), (64, 64, 8, 56, 56)),
}
"""Tensors [N, C, T, H, W] that are measured: 0.8 to 51 MB in float32 on a CPU, 26 to 411 MB on a GPU."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
TURN_S = 0.02
"""Least seconds of one turn: small tensors pass several times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormTime:
    """One tensor."""

    shape: tuple[int, ...]
    layout: str
    precision: str
    groups: int
    spanning: bool
    """Its statistics are sought by way of a process group."""
    seconds: float
    """Of forward and backward, median over the rounds; `plain_seconds` likewise."""
    plain_seconds: float
    ratio: float
    """Median of each round's own ratio, so that what slows a machine down for a while counts little."""

    @property
    def bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * (2 if self.precision == "bfloat16" else 4)

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape), "layout": self.layout, "precision": self.precision, "groups": self.groups,
            "spanning": self.spanning, "mb": self.bytes / 1e6,
            "ms": 1e3 * self.seconds, "plain_ms": 1e3 * self.plain_seconds, "ratio": self.ratio, "met": self.ratio <= GOAL,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class NormBench:
    """All tensors of a device."""

    device: str
    rounds: int
    rows: tuple[NormTime, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device, "clips_of_group": GROUP, "rounds": self.rounds, "goal": GOAL,
            "tensors": [row.to_json() for row in self.rows],
        }  # fmt: skip

    def table(self) -> Table:
        table = Table(
            *("tensor", "MB", "layout", "precision", "groups", "ms", "plain ms", "ratio"),
            title=f"batch norm in groups of {GROUP} clips, forward and backward, on {self.device}",
            caption=f"goal: a ratio of at most {GOAL} ({sum(row.ratio <= GOAL for row in self.rows)} of {len(self.rows)} meet it)",
        )  # fmt: skip
        for name in ("MB", "groups", "ms", "plain ms", "ratio"):
            next(column for column in table.columns if column.header == name).justify = "right"
        for row in self.rows:
            table.add_row(
                "x".join(map(str, row.shape)), f"{row.bytes / 1e6:.1f}", row.layout, row.precision,
                "over ranks" if row.spanning else str(row.groups),
                f"{1e3 * row.seconds:.3f}", f"{1e3 * row.plain_seconds:.3f}", f"{row.ratio:.2f}",
            )  # fmt: skip
        return table


def measure(device: str, rounds: int) -> NormBench:
    """Measure every tensor of `SHAPES`, with a progress bar on a terminal.

    Args:
        device: cpu, cuda, or auto for a GPU where there is one.

    Raises:
        ConfigError: torch sees no GPU.
    """
    place = device_of(device)
    precisions = ("float32", "bfloat16") if place.type == "cuda" else ("float32",)
    tensors = [
        (shape, layout, precision) for precision in precisions for shape in SHAPES[place.type] for layout in LAYOUTS
    ]
    console = Console(stderr=True)
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
        _process_group(place) as alone,
    ):
        jobs: list[tuple[tuple[int, ...], str, str, dist.ProcessGroup | None]] = [(*tensor, None) for tensor in tensors]
        spanning = [((GROUP, *shape[1:]), layout, precision, alone) for shape, layout, precision in tensors]
        jobs += dict.fromkeys(spanning)
        rows = [
            _measured(shape, layout, precision, place, rounds, group)
            for shape, layout, precision, group in bar.track(jobs, description="norm")
        ]
    return NormBench(device=name_of(place), rounds=rounds, rows=tuple(rows))


@contextlib.contextmanager
def _process_group(device: torch.device) -> Iterator[dist.ProcessGroup]:
    """One of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _measured(
    shape: tuple[int, ...],
    layout: str,
    precision: str,
    device: torch.device,
    rounds: int,
    process_group: dist.ProcessGroup | None = None,
) -> NormTime:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    grad_output = torch.randn_like(x)
    grouped, plain = GroupedBatchNorm3d(shape[1]).to(device), nn.BatchNorm3d(shape[1]).to(device)
    grouped.groups, grouped.defer = BnGroups((GROUP,) * (shape[0] // GROUP), process_group), True

    def ours() -> None:
        _pass(grouped, x, grad_output)
        grouped.pending = ()

    def theirs() -> None:
        _pass(plain, x, grad_output)

    turns = list(_turns((ours, theirs), device, rounds, autocast=precision == "bfloat16"))
    own, other = (statistics.median(column) for column in zip(*turns, strict=True))
    return NormTime(
        shape=shape, layout=layout, precision=precision, groups=len(grouped.groups.sizes),
        spanning=process_group is not None, seconds=own, plain_seconds=other,
        ratio=statistics.median(mine / plain for mine, plain in turns),
    )  # fmt: skip


def _pass(norm: nn.BatchNorm3d, x: Tensor, grad_output: Tensor) -> None:
    torch.autograd.grad(norm(x), [x, norm.weight, norm.bias], grad_output)


def _turns(
    ways: tuple[Callable[[], None], Callable[[], None]], device: torch.device, rounds: int, *, autocast: bool
) -> Iterator[tuple[float, float]]:
    """Seconds of one pass of each way, round by round; first and second swap places from round to round."""
    context = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        for way in ways:
            way()
        passes = max(1, min(1000, math.ceil(TURN_S / max(_seconds(ways[1], 1, device), 1e-6))))
        for number in range(rounds):
            found = {which: _seconds(ways[which], passes, device) for which in ((0, 1) if number % 2 else (1, 0))}
            yield found[0], found[1]


def _seconds(way: Callable[[], None], passes: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(passes):
        way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / passes
