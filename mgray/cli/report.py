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
    """Folders of runs, in any order: the baseline is the first with a constant schedule, else the first."""
    out: Path = Path("report")
    """Folder for report.html and its pictures."""


def _report(arguments: Sequence[str]) -> None:
    command = parse(ReportArguments, arguments, REPORT)
    demand("RUN", command.runs, "mgray report RUN [RUN ...]")
    from mgray.report import print_comparison, read_run, write_report
    from mgray.report.page import make_folder

    records = [read_run(run) for run in command.runs]
    make_folder(command.out)
    print_comparison(records)
    print(write_report(command.runs, command.out))


REPORT = Command(
    name="report",
    arguments="RUN [RUN ...]",
    summary="Compare runs: one table, pictures and a self-contained report.html.",
    examples=("mgray report runs/folder_baseline runs/folder --out report/",),
    run=_report,
)
