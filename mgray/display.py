"""What a person sees: of a run while it trains (a bar on a terminal, a line now and then elsewhere), and of ingested data."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mgray.data.estimate import Estimate
from mgray.data.shards.shard_set import ShardSet

LINE_EVERY_S = 30.0
"""Seconds between two lines where there is no terminal."""


_NOISE = "PYTHON worker processes have been started"
"""Ray prints this on every driver's output, whatever its log level, where a machine of few cores runs many actors."""


class _Filtered:
    """Standard output without Ray's remark on the number of its processes; what else Ray says goes through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.local()

    def write(self, text: str) -> int:
        # print() writes the end of a line by itself
        ends_noise = text == "\n" and getattr(self._thread, "dropped", False)
        self._thread.dropped = _NOISE in text and not text.endswith("\n")
        return len(text) if ends_noise or _NOISE in text else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Keep Ray's remark on the number of its processes off standard output for as long as the context lasts."""
    before = sys.stdout
    filtered = cast(TextIO, _Filtered(before))
    sys.stdout = filtered
    try:
        yield
    finally:
        if sys.stdout is filtered:
            sys.stdout = before


class TrainDisplay:
    """A bar that counts cost (voxels), and beneath it phase, shape, step, clips per second, data wait, loss and accuracy."""

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console = title, console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task: TaskID = self._bar.add_task(title, total=1.0)
        self._text = Text("starting workers", style="dim", overflow="ellipsis", no_wrap=True)
        self._live = Live(Group(self._bar, self._text), console=console, refresh_per_second=4, transient=True)
        self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"{self._title}: {message}", soft_wrap=True)

    def update(self, status: dict[str, Any]) -> None:
        """Show a driver's status."""
        if "step" not in status:
            return
        step = status["step"]
        done = status["done"]
        score = f"  val {100 * status['score']:.1f}%" if "score" in status else ""
        text = (
            f"phase {status['phase'] + 1}/{status['num_phases']} {status['shape']}  step {step}/{status['num_steps']}  "
            f"{status['clips_per_s']:.1f} clips/s  wait {100 * status['wait_share']:.0f}%  loss {status['loss']:.3f}{score}"
        )
        self._bar.update(self._task, completed=done)
        self._text.plain = text
        now = time.monotonic()
        if not self._console.is_terminal and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            self._console.print(f"{self._title}: {100 * done:.0f} %  {text}", soft_wrap=True)


class IngestDisplay:
    """A bar that counts videos; without a terminal, a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("ingest", total=None)
        self._line_at = self._began = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, broken: int) -> None:
        """Show how many videos are done, those of earlier calls and broken ones included."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if self._console.is_terminal or now - self._line_at < LINE_EVERY_S:
            return
        self._line_at = now
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        left = f", {datetime.timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        self._console.print(f"ingest: {done:,} of {total:,} videos, {broken:,} of them broken{left}", soft_wrap=True)


def ctl_tree(status: dict[str, Any]) -> dict[str, Any]:
    """A driver's status as plain values for a program."""
    shown = (
        "step", "num_steps", "done", "phase", "num_phases", "shape", "epoch", "lr", "loss", "score", "clips_per_s", "wait_share",
        "train_s", "workers", "doing", "version", "amendments", "saves", "departures",
    )  # fmt: skip
    return {name: status[name] for name in shown if name in status}


def ctl_lines(name: str, status: dict[str, Any]) -> list[str]:
    """A driver's status for people."""
    if "step" not in status:
        return [f"{name}: workers are starting"]
    score = f", validation {100 * status['score']:.1f} %" if "score" in status else ""
    doing = f"; {status['doing']}" if status.get("doing") else ""
    orders = [*status.get("departures", ()), *((step, "checkpoint") for step in status.get("saves", ()))]
    return [
        f"{name}: step {status['step']:,} of {status['num_steps']:,} ({100 * status['done']:.1f} % of its cost), {status['workers']} workers{doing}",
        f"  phase {status['phase'] + 1} of {status['num_phases']}, {status['shape']}, epoch {status['epoch']:.2f}, LR {status['lr']:.4g}",
        f"  loss {status['loss']:.3f}{score}, {status['clips_per_s']:.1f} clips/s, {100 * status['wait_share']:.0f} % waiting for data",
        *(
            f"  amended: {kind}{f' {value:g}' if value else ''} from step {step:,}"
            for kind, step, value, _ in status["amendments"]
        ),
        *(f"  to come: {what} before step {step:,}" for step, what in sorted(orders) if step > status["step"]),
    ]


def print_shards(shards: ShardSet, console: Console | None = None) -> None:
    """A table of what an ingested dataset holds."""
    console = console or Console()
    found = shards.summary()
    table = Table(title=found["path"], title_justify="left", show_header=False)
    table.add_row("videos", f"{found['videos']['train']:,} to train on, {found['videos']['val']:,} to validate on")
    several = ", any number of them a video" if found["multi_label"] else ""
    table.add_row("classes", f"{found['classes']:,}{several}")
    table.add_row(
        "length",
        f"{found['frames']:,} frames, {datetime.timedelta(seconds=round(found['seconds']))}; "
        f"{found['shortest_s']:g} to {found['longest_s']:g} s a video",
    )
    kinds = (f"{count:,} {name}" for key in ("source_codecs", "pixel_formats") for name, count in found[key].items())
    table.add_row("sources", f"{decimal(found['source_bytes'])}; {', '.join(kinds)}")
    for level in found["levels"]:
        share = level["bytes"] / max(1, found["source_bytes"])
        table.add_row(
            "packet tables" if level["level"] == "source" else f"level {level['level']}",
            f"{level['videos']:,} videos, {decimal(level['bytes'])} ({share:.2f} of the sources) in {level['shards']:,} files",
        )
    if found["encoded_anew"]:
        table.add_row("encoded anew", f"{found['encoded_anew']:,} videos whose own packets cannot be passed through")
    if found["broken"]:
        table.add_row("left out", "\n".join(f"{item['path']}: {item['reason']}" for item in found["broken"][:10]))
    console.print(table)


def print_estimate(found: Estimate, cores: int, console: Console | None = None) -> None:
    """What an ingest will take."""
    console = console or Console()
    total = sum(found.stored_bytes.values())
    console.print(
        f"{found.videos:,} videos of {decimal(found.source_bytes)}; {found.tried} of them were encoded for this estimate"
    )
    for level, size in found.stored_bytes.items():
        console.print(f"  {level:>6}  {decimal(size)}", highlight=False)
    share = total / max(1, found.source_bytes)
    console.print(
        f"stored: about {decimal(total)}, {share:.2f} of the sources; "
        f"time: about {datetime.timedelta(seconds=round(found.cpu_s))} of one core, "
        f"{datetime.timedelta(seconds=round(found.cpu_s / cores))} on the {cores} cores of this machine",
        soft_wrap=True,
    )
    for item in found.broken:
        console.print(f"mgray: warning: {item.path} {item.reason}", soft_wrap=True)
