"""`mgray demo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgray.cli.parse import Command, parse


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    data: str = ""
    """Your own videos instead of the clips that come with mgray: a folder or a list, as for `mgray ingest`."""
    out: Path = Path("demo-out")
    """Folder for shards, runs and the report."""


def _demo(arguments: Sequence[str]) -> None:
    command = parse(DemoArguments, arguments, DEMO)
    from mgray.demo import demo

    demo(data=command.data or None, out=command.out)


DEMO = Command(
    name="demo",
    arguments="",
    summary="Train a small SlowFast on real clips by the baseline and by multigrid, and compare them.",
    examples=(
        "mgray demo",
        "mgray demo --data videos/ --out demo-videos/",
    ),
    run=_demo,
)
