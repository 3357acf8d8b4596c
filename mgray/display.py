"""What a person sees of a run while it trains: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mgray.plan import Plan, progress_at

LINE_EVERY_S = 30.0
"""Seconds between two lines where there is no terminal."""


class TrainDisplay:
    """A bar that counts cost (voxels), and beneath it phase, shape, step, clips per second, data wait, loss and accuracy."""

    def __init__(self, title: str, plan: Plan, console: Console) -> None:
        self._title, self._plan, self._console = title, plan, console
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

    def update(self, status: dict[str, Any]) -> None:
        """Show a driver's status."""
        if "step" not in status:
            return
        step = status["step"]
        done = progress_at(self._plan, step).fraction
        top1 = f"  val {100 * status['top1']:.1f}%" if "top1" in status else ""
        text = (
            f"phase {status['phase'] + 1}/{len(self._plan.phases)} {status['shape']}  step {step}/{self._plan.num_steps}  "
            f"{status['clips_per_s']:.1f} clips/s  wait {100 * status['wait_share']:.0f}%  loss {status['loss']:.3f}{top1}"
        )
        self._bar.update(self._task, completed=done)
        self._text.plain = text
        now = time.monotonic()
        if not self._console.is_terminal and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            self._console.print(f"{self._title}: {100 * done:.0f} %  {text}", soft_wrap=True)
