"""`mgray report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgray.cli.parse import Command, demand, parse


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Folders of runs, the baseline first."""
    out: Path = Path("report")
    """Folder for report.html and its pictures."""


def _report(arguments: Sequence[str]) -> None:
    command = parse(ReportArguments, arguments, REPORT)
    demand("RUN", command.runs, "mgray report RUN [RUN ...]")
    from mgray.report import print_comparison, read_run, write_report

    print_comparison([read_run(run) for run in command.runs])
    print(write_report(command.runs, command.out))


REPORT = Command(
    name="report",
    arguments="RUN [RUN ...]",
    summary="Compare runs: one table, pictures and a self-contained report.html.",
    examples=("mgray report runs/folder_baseline runs/folder --out report/",),
    run=_report,
)
