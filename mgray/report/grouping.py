"""Which runs belong together in a report, what they are compared with, and what they are called."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from mgray.config import Run
from mgray.report.records import RunRecords


def group_key(records: RunRecords) -> tuple[Run, tuple[str, ...]]:
    """Equal for runs that differ in name, seed or fold only: another dataset has other classes."""
    run = records.run
    same = dataclasses.replace(
        run,
        name="run",
        storage="",
        track="",
        data=dataclasses.replace(run.data, path=""),
        train=dataclasses.replace(run.train, seed=0),
    )
    return same, records.data.classes if records.data else ()


def partner_of(records: RunRecords, baseline: Sequence[RunRecords]) -> RunRecords:
    """The baseline run that is most like this one: itself, then of the same data, then of the same seed."""

    def likeness(other: RunRecords) -> tuple[bool, bool, bool]:
        same_data = other.run.data.path == records.run.data.path
        return other is records, same_data, other.run.train.seed == records.run.train.seed

    return max(baseline, key=likeness)


def labels_of(groups: Sequence[Sequence[RunRecords]]) -> list[str]:
    """A distinct name for each group: its run's name, or what the names of its runs have in common."""
    labels: list[str] = []
    for members in groups:
        names = [records.name for records in members]
        label = names[0] if len(names) == 1 else _common(names) or names[0]
        if label in labels:
            label = f"{members[0].path.parent.name}/{label}"
        labels.append(label if label not in labels else f"{label} #{len(labels) + 1}")
    return labels


def _common(names: Sequence[str]) -> str:
    """The names without the seed or fold that they differ in, e.g. `demo-baseline` of demo-baseline-seed0 and -seed1."""
    head = _prefix(names)
    tail = _prefix([name[len(head) :][::-1] for name in names])[::-1]
    return re.sub(r"([-_.]+(seed|fold|s|f))?[-_.]*\d*$", "", head) + re.sub(r"^\d+", "", tail)


def _prefix(names: Sequence[str]) -> str:
    columns = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in columns)
