"""What people see of a search: one table while it goes, the same at its end, and the Pareto front as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import matplotlib
from matplotlib.figure import Figure
from ray.tune import Callback
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mgray.report.picture import save_picture
from mgray.report.plots import INK, MUTED, SERIES, STYLE
from mgray.tune.objective import Goal, Score, best_top1, cost_to, pareto_front
from mgray.tune.space import Point
from mgray.tune.trial import Search, run_name

Row = tuple[str, Point, Sequence[Score], str, float, int | None]
"""Name, point, scores, state, seconds of training (0 where not known), epochs of its schedule (None where not known)."""
PIPE_WIDTH = 120


class Progress:
    """Follows a search; Tune tells it by way of `Relay`."""

    def __init__(self, search: Search, trials: int, console: Console) -> None:
        self._search, self._trials, self._console = search, trials, console
        self._states: dict[str, str] = {}
        self._scores: dict[str, list[Score]] = {}
        self._epochs: dict[str, int | None] = {}
        self.points: dict[str, Point] = {}
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._table)

    def __enter__(self) -> Self:
        Relay.target = self
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Relay.target = None
        self._live.stop()

    def result(self, trial: Any, result: dict[str, Any]) -> None:
        """A trial was validated."""
        name = run_name(trial.trial_id)
        scores = self._scores.setdefault(name, [])
        if self._epochs.get(name) is None:
            self._epochs[name] = self._search.epochs(name)
        if not scores or result["cost"] > scores[-1].cost:
            scores.append(Score(result["cost"], result["top1"]))

    def note(self, trial: Any, state: str) -> None:
        """A trial is running, has ended or failed."""
        name = run_name(trial.trial_id)
        self.points[name], self._states[name] = trial.config, state
        if state != "running" and not self._console.is_terminal:
            scores = self._scores.get(name, [])
            self._console.print(
                f"trial {len([s for s in self._states.values() if s != 'running'])}/{self._trials} {state}: "
                f"{_words(trial.config)}: {self._search.metric} {100 * best_top1(scores):.1f} % at cost {scores[-1].cost if scores else 0:.2f}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip

    def _table(self) -> Table:
        rows = [
            (name, point, self._scores.get(name, []), self._states[name], 0.0, self._epochs.get(name))
            for name, point in self.points.items()
        ]
        title = f"{sum(state != 'running' for state in self._states.values())} of {self._trials} trials"
        return trials_table(self._search, rows, best=None, title=title)


class Relay(Callback):
    """Tune's callback; Tune stores it with a search, and a search that is taken up again has another `Progress`."""

    target: ClassVar[Progress | None] = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.target is not None:
            self.target.note(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self.target is not None:
            self.target.result(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.target is not None:
            self.target.note(trial, "ended")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.target is not None:
            self.target.note(trial, "failed")


def _words(point: Point) -> str:
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items()
    )


def trials_table(search: Search, rows: Sequence[Row], *, best: str | None, title: str) -> Table:
    """One row a trial; the searched run's own point is called own."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False, title=title, title_justify="left")
    table.add_column("trial", justify="right", no_wrap=True)
    for name in search.space:
        table.add_column(name, overflow="fold")
    target = search.goal.objective == "cost"
    for name in (
        "epochs",
        "cost",
        search.metric,
        *([f"to {100 * search.goal.target:.0f} %"] if target else ()),
        "time",
        "state",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (name, point, scores, state, train_s, epochs) in enumerate(rows):
        reached = cost_to(scores, search.goal.target)
        values = [point[parameter] for parameter in search.space]
        table.add_row(
            str(number),
            *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values),
            "-" if epochs is None else str(epochs),
            f"{scores[-1].cost:.2f}" if scores else "-",
            f"{100 * best_top1(scores):.1f}" if scores else "-",
            *([] if not target else ["-" if reached is None else f"{reached:.2f}"]),
            f"{train_s:.0f} s" if train_s else "-",
            ("own, " if point == search.own else "") + state,
            style="bold" if name == best else "",
        )
    return table


def print_trials(search: Search, rows: Sequence[Row], best: str, console: Console) -> None:
    """The table of a search that has ended; the best trial is bold."""
    wide = console if console.is_terminal else Console(file=console.file, width=PIPE_WIDTH)
    number = next(place for place, row in enumerate(rows) if row[0] == best)
    wide.print(trials_table(search, rows, best=best, title=f"{len(rows)} trials; the best is {number}"))
    reached = (
        f"; to {100 * search.goal.target:.0f} %: the cost that reaches it" if search.goal.objective == "cost" else ""
    )
    wide.print(f"cost: of the searched run's own voxels; {search.metric}: best validation, %{reached}", highlight=False)


def plot_pareto(
    curves: Mapping[str, Sequence[Score]], *, own: str | None, best: str, goal: Goal, metric: str = "top-1", out: Path
) -> None:
    """Accuracy over cost: all trials' validations, the front that none beats, the searched run's own trial and the best."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 5.0), layout="constrained")
        axes = figure.subplots()
        for name, scores in curves.items():
            label = "the run's own schedule" if name == own else "best trial"
            label += ", the best trial" if name == own == best else ""
            color = SERIES[1] if name == own else SERIES[0]
            named = name in (best, own)
            axes.plot(
                [s.cost for s in scores], [100 * s.top1 for s in scores], color=color if named else MUTED, label=label if named else None,
                alpha=1.0 if named else 0.35, linewidth=1.8 if named else 1.0, marker="o" if named else "", markersize=3.5,
            )  # fmt: skip
        front = pareto_front(curves.values())
        axes.step(
            [s.cost for s in front], [100 * s.top1 for s in front], where="post", color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="Pareto front"
        )  # fmt: skip
        if goal.objective == "cost":
            axes.axhline(100 * goal.target, color=MUTED, linewidth=1)
            axes.annotate("target", (0, 100 * goal.target), xytext=(4, 3), textcoords="offset points", color=MUTED)
        axes.set(xlabel="training cost (voxels), of the run's own schedule", ylabel=f"validation {metric}, %")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")
        axes.set_title(f"{len(curves)} trials", loc="left")
        save_picture(figure, out)
