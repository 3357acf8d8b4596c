"""What a person sees of a run while it trains: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mgray.plan import Plan, progress_at

LINE_EVERY_S = 30.0
"""Seconds between two lines where there is no terminal."""


class TrainDisplay:
    """Shows phase, shape, step, clips per second, data wait, loss, accuracy and time left; the bar counts cost (voxels)."""

    def __init__(self, title: str, plan: Plan, console: Console) -> None:
        self._title, self._plan, self._console = title, plan, console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(title, total=1.0, text="starting workers")
        self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, status: dict[str, Any]) -> None:
        """Show a driver's status."""
        if "step" not in status:
            return
        step = status["step"]
        done = progress_at(self._plan, step).fraction
        top1 = f" val {100 * status['top1']:.1f}%" if "top1" in status else ""
        text = (
            f"phase {status['phase'] + 1}/{len(self._plan.phases)} {status['shape']} step {step}/{self._plan.num_steps} "
            f"{status['clips_per_s']:.1f} clips/s wait {100 * status['wait_share']:.0f}% loss {status['loss']:.3f}{top1}"
        )
        self._bar.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            self._console.print(f"{self._title}: {100 * done:.0f} % {text}", soft_wrap=True)
