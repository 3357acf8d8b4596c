"""Runs beside a baseline: what each cost, how far it came, and how much sooner it was as good as the baseline.

A run is compared with one baseline run, its partner: that of the same seed and data where there is one. The target is the
partner's best validation accuracy; the time to it is the training time (validation, saving and start-up excluded) at the
first validation that reaches it. Nothing is interpolated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgray.config import Run
from mgray.errors import DataError
from mgray.plan import PlanSpec
from mgray.report.grouping import group_key, labels_of, partner_of
from mgray.report.interval import ratio_interval
from mgray.report.records import RunRecords
from mgray.report.words import factor, magnitude, percent, points, seconds, spread, whole

TARGET_SHARES = (0.9, 0.95, 0.98, 1.0)
"""Shares of the baseline's best accuracy that times are given for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunResult:
    """What one run cost and reached, beside its partner, the baseline run that it is compared with."""

    records: RunRecords
    partner: RunRecords
    num_steps: int
    num_epochs: float
    num_clips: int
    num_voxels: float
    train_s: float
    eval_s: float
    wait_share: float
    """Share of the training time that was spent waiting for data; NaN before the first step."""
    final_score: float | None
    best_score: float | None

    def seconds_to_share(self, share: float) -> float | None:
        """Training seconds to this share of the partner's best accuracy; None where it was not reached."""
        target = self.partner.best_score
        return None if target is None else self.records.seconds_to(share * target)

    def partner_seconds_to_share(self, share: float) -> float | None:
        target = self.partner.best_score
        return None if target is None else self.partner.seconds_to(share * target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How soon the runs of a group reached a share of their partners' best accuracy."""

    share: float
    seconds: tuple[float, ...]
    """Of the runs that reached it."""
    partner_seconds: tuple[float, ...]
    """Of their partners, in the same order."""
    num_missed: int

    @property
    def speedups(self) -> tuple[float, ...]:
        return tuple(
            theirs / own for own, theirs in zip(self.seconds, self.partner_seconds, strict=True) if own and theirs
        )

    @property
    def speedup(self) -> float | None:
        """The partners' mean time over the mean time of the runs that reached it; None where none did."""
        return sum(self.partner_seconds) / sum(self.seconds) if self.seconds and sum(self.seconds) > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Runs that differ in nothing but seed or fold."""

    label: str
    schedule: str
    is_baseline: bool
    results: tuple[RunResult, ...]

    def reach(self, share: float = 1.0) -> Reach:
        pairs = [(r.seconds_to_share(share), r.partner_seconds_to_share(share)) for r in self.results]
        reached = [(own, theirs) for own, theirs in pairs if own is not None and theirs is not None]
        return Reach(
            share=share,
            seconds=tuple(own for own, _ in reached),
            partner_seconds=tuple(theirs for _, theirs in reached),
            num_missed=len(pairs) - len(reached),
        )

    @property
    def best_score(self) -> float | None:
        """Mean over its runs of the best accuracy; None before the first validation of each."""
        best = [result.best_score for result in self.results if result.best_score is not None]
        return statistics.fmean(best) if best else None

    @property
    def is_finished(self) -> bool:
        return all(result.records.is_finished for result in self.results)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the comparison table: a quantity, its value for each group."""

    label: str
    cells: tuple[str, ...]
    is_key: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Comparison:
    """Groups of runs beside the baseline's group, which comes first."""

    groups: tuple[Group, ...]

    @property
    def baseline(self) -> Group:
        return self.groups[0]

    @property
    def metric(self) -> str:
        """What validations are scored by: "top-1" or "mAP"."""
        return self.baseline.results[0].records.metric

    @property
    def is_alone(self) -> bool:
        """True when there is no other schedule to compare the baseline with."""
        return len(self.groups) == 1

    @property
    def has_several(self) -> bool:
        """True when another schedule than the baseline has several runs."""
        return any(len(group.results) > 1 for group in self.groups[1:])

    @property
    def titles(self) -> tuple[str, ...]:
        """The groups' labels, the first with the word baseline where it does not hold it."""
        base, *others = (group.label for group in self.groups)
        return (base if self.is_alone or "baseline" in base else f"{base} (baseline)", *others)

    @property
    def leader(self) -> Group | None:
        """The group that the headline is about: the greatest speed-up, else the best accuracy; None without another."""
        others = self.groups[1:]
        whole = [group for group in others if group.reach().speedup is not None and not group.reach().num_missed]
        some = whole or [group for group in others if group.reach().speedup is not None]
        if some:
            return max(some, key=lambda group: group.reach().speedup or 0.0)
        return max(others, key=lambda group: group.best_score or 0.0, default=None)

    def headline(self) -> str:
        """One sentence with the measured speed-up, or what stands in the way of one."""
        leader, base = self.leader, self.baseline
        if leader is None:
            best = base.best_score
            reached = "has no validation yet" if best is None else f"reaches {percent(best)} {self.metric}"
            trained = spread([r.train_s for r in base.results], seconds)
            return f"{base.label} {reached} in {trained} of training; there is no other schedule to compare it with."
        target = base.best_score
        if target is None or leader.best_score is None:
            lacking = base if target is None else leader
            return f"No comparison yet: {lacking.label} has no validation so far."
        score = f"{self.metric}{' accuracy' if self.metric == 'top-1' else ''}"
        reach, goal = leader.reach(), f"the baseline's best {score} ({percent(target)})"
        if reach.speedup is None:
            near = leader.reach(self.near_share)
            if near.speedup is not None and near.speedup > 1:
                return (
                    f"{leader.label} comes within the standard error ({points(target * (1 - near.share))}) of {goal} "
                    f"{factor(near.speedup)} sooner: in {seconds(statistics.fmean(near.seconds))} of training against "
                    f"{seconds(statistics.fmean(near.partner_seconds))}; its own best is {percent(leader.best_score)}."
                )
            trained = spread([r.train_s for r in leader.results], seconds)
            verb = "does not reach" if leader.is_finished else "has so far not reached"
            return (
                f"No speed-up: {leader.label} {verb} {goal}; its best is {percent(leader.best_score)}, "
                f"{points(target - leader.best_score)} below, in {trained} of training."
            )
        own, theirs = statistics.fmean(reach.seconds), statistics.fmean(reach.partner_seconds)
        if reach.speedup > 1:
            text = f"{leader.label} reaches {goal} {factor(reach.speedup)} sooner"
        else:
            text = f"No speed-up: {leader.label} reaches {goal} later ({factor(reach.speedup)})"
        text += f": in {seconds(own)} of training against {seconds(theirs)}"
        if reach.num_missed:
            text += f", in {len(reach.seconds)} of {len(leader.results)} runs; the others do not reach it"
        elif len(reach.seconds) > 1:
            text += (
                f" (means of {len(reach.seconds)} runs, {factor(min(reach.speedups))} to {factor(max(reach.speedups))})"
            )
        return text + "."

    @property
    def near_share(self) -> float:
        """The share of the baseline's best accuracy that lies one standard error of it below (binomial; of mAP all of it)."""
        best, evals = self.baseline.best_score, self.baseline.results[0].records.evals
        if not best or not evals or self.metric != "top-1":
            return 1.0
        return 1.0 - standard_error(best, evals[-1].num_clips) / best

    def rows(self) -> tuple[Row, ...]:
        """The comparison table; several runs of a group show as their mean and range."""

        def each(label: str, value: Callable[[RunResult], float], show: Callable[[float], str]) -> Row:
            return Row(label=label, cells=tuple(spread([value(r) for r in g.results], show) for g in self.groups))

        def accuracy(label: str, value: Callable[[RunResult], float | None]) -> Row:
            return Row(label=label, cells=tuple(_accuracy([value(r) for r in g.results]) for g in self.groups))

        reaches = [group.reach() for group in self.groups]
        near = [group.reach(self.near_share) for group in self.groups]
        paired = self.has_several
        speed = (
            Row(label="time to baseline's best", cells=tuple(_reached(reach) for reach in reaches), is_key=True),
            Row(label="speed-up", cells=tuple(_speedup(reach) for reach in reaches), is_key=True),
            *(
                []
                if not paired
                else [Row(label="95 % interval over seeds", cells=tuple(map(_interval, self.groups, reaches)))]
            ),
            Row(label="time to 1 s.e. below it", cells=tuple(_reached(reach) for reach in near)),
            Row(label="speed-up to there", cells=tuple(_speedup(reach) for reach in near)),
            *(
                []
                if not paired
                else [Row(label="95 % interval over seeds", cells=tuple(map(_interval, self.groups, near)))]
            ),
        )
        return (
            Row(label="schedule", cells=tuple(group.schedule for group in self.groups)),
            Row(label="runs", cells=tuple(_runs(group) for group in self.groups)),
            each("steps", lambda r: r.num_steps, whole),
            each("epochs", lambda r: r.num_epochs, lambda x: f"{x:,.1f}"),
            each("clips", lambda r: r.num_clips, whole),
            each("voxels", lambda r: r.num_voxels, magnitude),
            each("training time", lambda r: r.train_s, seconds),
            each("validation time", lambda r: r.eval_s, seconds),
            each("data wait", lambda r: r.wait_share, percent),
            accuracy(f"final {self.metric}", lambda r: r.final_score),
            accuracy(f"best {self.metric}", lambda r: r.best_score),
            *(() if self.is_alone else speed),
        )

    def target_rows(self) -> tuple[Row, ...]:
        """Time and speed-up to several shares of the baseline's best accuracy, so that no single one decides."""
        rows = []
        for share in TARGET_SHARES:
            cells = []
            for group in self.groups:
                reach = group.reach(share)
                text = seconds(statistics.fmean(reach.seconds)) if reach.seconds else "not reached"
                if reach.speedup is not None and not group.is_baseline:
                    text += f" · {factor(reach.speedup)}"
                cells.append(text + _missed(reach))
            rows.append(
                Row(label=f"{100 * share:.0f} % of the baseline's best", cells=tuple(cells), is_key=share == 1.0)
            )
        return tuple(rows)

    def notes(self) -> tuple[str, ...]:
        """What a reader must know to judge the figures."""
        notes = ["Training time leaves out validation, saving and start-up."]
        if not self.is_alone:
            notes[0] += (
                f" The time to the baseline's best is the training time at the first validation whose {self.metric} is at least the "
                "baseline's best; nothing is interpolated."
            )
        if any(len(group.results) > 1 for group in self.groups):
            notes.append(
                "Several runs of a schedule show as their mean and range (accuracy with its standard error too), the speed-up as "
                "the ratio of mean times; each run is compared with the baseline of the same seed and data where there is one."
            )
        if self.has_several:
            bases = len({id(r.partner) for group in self.groups[1:] for r in group.results})
            notes.append(
                "The 95 % interval is Student's t of the logarithms of the runs' speed-ups, each over its partner of the baseline; "
                "n counts the runs that reach the accuracy, and with so few it is wide and rests on their being log-normal."
                + (" All share one baseline run, whose own spread is not in it." if bases == 1 else "")
                + " Where some do not reach it, it is of those that do and so too favourable."
                * any(
                    reach.num_missed
                    for group in self.groups[1:]
                    for reach in (group.reach(), group.reach(self.near_share))
                )
            )
        gaps = [
            f"{group.label} every {seconds(gap)}" for group in self.groups if (gap := _eval_gap_s(group)) is not None
        ]
        if gaps:
            notes.append(
                f"Validated, on average: {', '.join(gaps)} of training; a time to an accuracy is known to within that."
            )
        best, base = self.baseline.best_score, self.baseline.results[0].records
        if best is not None and base.evals and self.metric == "top-1":
            clips = base.evals[-1].num_clips
            notes.append(
                f"Accuracy is measured on {clips:,} validation clips: one clip is {points(1 / max(1, clips))}, the standard error "
                f"(s.e.) at {percent(best)} is {points(standard_error(best, clips))}."
            )
        late = [r.records for r in self.baseline.results if r.records.evals and _is_last_best(r.records)]
        if late:
            notes.append(
                f"The best accuracy of {', '.join(r.name for r in late)} is at its last validation: it may not have stopped "
                f"improving, and {'a longer baseline' if late[0].run.plan.is_constant else 'longer training'} might do better."
            )
        going = [r.records.name for group in self.groups for r in group.results if not r.records.is_finished]
        if going:
            notes.append(f"Not finished: {', '.join(going)}; the figures are those so far.")
        amended = [r.records.name for group in self.groups for r in group.results if r.records.schedule is not None]
        if amended:
            notes.append(
                f"Amended while training: the schedule of {', '.join(amended)}; report.html tells how under Events."
            )
        torn = [r.records for group in self.groups for r in group.results if r.records.num_unreadable]
        notes += [_quarantine_note(r.records) for g in self.groups for r in g.results if r.records.quarantined]
        notes += [f"{r.name}: {r.num_unreadable} lines of metrics.jsonl could not be read." for r in torn]
        return tuple(notes)


def compare(runs: Sequence[RunRecords]) -> Comparison:
    """Group runs that differ in seed or fold only, and set them beside the baseline.

    The baseline is the first run whose schedule is constant, else the first run, with the runs of its group.

    Raises:
        DataError: there is no run, or one twice.
    """
    if not runs:
        raise DataError("run", [], "names no run", "give the folder of at least one run")
    folders = [records.path.resolve() for records in runs]
    twice = next((records for place, records in enumerate(runs) if folders[place] in folders[:place]), None)
    if twice is not None:
        raise DataError("run", str(twice.path), "is named twice, as if it were another seed", "name each run once")
    chosen = next((records for records in runs if records.run.plan.is_constant), runs[0])
    grouped: dict[tuple[Run, tuple[str, ...]], list[RunRecords]] = {}
    for records in runs:
        grouped.setdefault(group_key(records), []).append(records)
    baseline = grouped.pop(group_key(chosen))
    ordered = [baseline, *grouped.values()]
    return Comparison(
        groups=tuple(
            Group(
                label=label,
                schedule=schedule_name(members[0].run.plan),
                is_baseline=members is baseline,
                results=tuple(_result(records, partner_of(records, baseline)) for records in members),
            )
            for label, members in zip(labels_of(ordered), ordered, strict=True)
        )
    )


def standard_error(accuracy: float, clips: int) -> float:
    """Of an accuracy that was measured on so many clips (binomial)."""
    return math.sqrt(max(0.0, accuracy * (1.0 - accuracy)) / max(1, clips))


def print_comparison(runs: Sequence[RunRecords], console: Console | None = None) -> None:
    """Print the comparison of runs as a table: a column a schedule, the baseline first, then the headline and notes.

    Raises:
        DataError: there is no run.
    """
    console = console or Console()
    comparison = compare(runs)
    table = Table(
        title="" if comparison.is_alone else "Comparison with the baseline", title_justify="left", title_style="bold"
    )
    table.add_column("")
    for title in comparison.titles:
        table.add_column(Text(title), justify="right")
    for row in comparison.rows():
        table.add_row(
            Text(row.label),
            *map(Text, row.cells),
            style="bold" if row.is_key else None,
            end_section=row.label == "runs",
        )
    console.print(table)
    console.print(Text(comparison.headline(), style="bold"))
    for note in comparison.notes():
        console.print(Text(note, style="dim"))


def schedule_name(spec: PlanSpec) -> str:
    """The kind of schedule in a few words, e.g. `long + short cycle, 1.5x epochs`."""
    cycles = {"off": [], "stage": ["long"], "run": ["progressive"]}[spec.long_cycle]
    cycles = [*cycles, *(["short"] if spec.short_cycle else [])]
    name = "constant" if not cycles else " + ".join(cycles) + (" cycle" if cycles != ["progressive"] else "")
    return name if spec.epoch_factor == 1.0 else f"{name}, {spec.epoch_factor:g}x epochs"


def _accuracy(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return spread(known, percent)
    error = statistics.stdev(known) / math.sqrt(len(known))
    low, high = 100 * min(known), 100 * max(known)
    return f"{100 * statistics.fmean(known):.1f} ± {100 * error:.1f} % ({low:.1f} to {high:.1f})"


def _reached(reach: Reach) -> str:
    return spread(reach.seconds, seconds) + _missed(reach) if reach.seconds else "not reached"


def _missed(reach: Reach) -> str:
    """What is to be said of the runs that did not reach it, where others did."""
    total = reach.num_missed + len(reach.seconds)
    return f"; not reached in {reach.num_missed} of {total}" if reach.seconds and reach.num_missed else ""


def _speedup(reach: Reach) -> str:
    if reach.speedup is None:
        return "-"
    if len(set(map(factor, reach.speedups))) < 2:
        return factor(reach.speedup)
    return f"{factor(reach.speedup)} ({factor(min(reach.speedups))} to {factor(max(reach.speedups))})"


def _interval(group: Group, reach: Reach) -> str:
    """Of the speed-up of a group's runs; those that did not reach it are left out and said to be."""
    total = reach.num_missed + len(reach.seconds)
    if group.is_baseline or total < 2:
        return "-"
    n = f"n = {len(reach.seconds)}" + (f" of {total}" if reach.num_missed else "")
    if (found := ratio_interval(reach.speedups)) is None:
        return f"- ({n})"
    return f"{factor(found[1])} to {factor(found[2])} ({n})"


def _runs(group: Group) -> str:
    seeds = sorted({result.records.run.train.seed for result in group.results})
    return f"{len(group.results)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _eval_gap_s(group: Group) -> float | None:
    """Mean training seconds from one validation to the next."""
    times = [record.train_s for result in group.results for record in result.records.evals[-1:]]
    counts = [len(result.records.evals) for result in group.results if result.records.evals]
    return sum(times) / sum(counts) if counts else None


def _is_last_best(records: RunRecords) -> bool:
    return len(records.evals) > 1 and all(records.evals[-1].score > record.score for record in records.evals[:-1])


def _result(records: RunRecords, partner: RunRecords) -> RunResult:
    steps = records.steps
    train_s = float(steps.train_s[-1]) if len(steps) else 0.0
    return RunResult(
        records=records,
        partner=partner,
        num_steps=len(steps),
        num_epochs=float(steps.clips.sum()) / max(1, int(records.plan["num_samples"])),
        num_clips=int(steps.clips.sum()),
        num_voxels=float(steps.voxels.sum()),
        train_s=train_s,
        eval_s=sum(record.eval_s for record in records.evals),
        wait_share=float(np.nansum(steps.wait_s)) / train_s if train_s > 0 else float("nan"),
        final_score=records.evals[-1].score if records.evals else None,
        best_score=records.best_score,
    )


def _quarantine_note(run: RunRecords) -> str:
    counts = {split: sum(found.split == split for found in run.quarantined) for split in ("train", "val")}
    done = {"train": "replaced by substitutes", "val": "left out of its scores"}
    parts = [
        f"{count} {split} video{'s' if count > 1 else ''} {done[split]}" for split, count in counts.items() if count
    ]
    return (
        f"{run.name}: broken videos were met in training ({', '.join(parts)}); report.html and metrics.jsonl list them."
    )
