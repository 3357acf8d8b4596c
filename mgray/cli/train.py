"""`mgray train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from mgray.cli.parse import SOME_WORKLOADS, Command, amendments_in, base_run, parse
from mgray.config import Run
from workloads import starts_from


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show Ray's own logs here rather than in its files only."""


def _train(arguments: Sequence[str]) -> None:
    rest = list(arguments)
    name, base = base_run(rest, f"write mgray train NAME; mgray --help lists them, e.g. {SOME_WORKLOADS}")
    command = parse(TrainArguments, rest, TRAIN, default=TrainArguments(run=base))
    if (start := starts_from(name)) and not command.run.model.init:
        print(
            f"mgray: note: {name} is a recipe for weights of {start}; give them as --model.init"
            + (f", or train {name}_scratch" if start == "Kinetics-400" and "gpu" not in name else ""),
            file=sys.stderr,
        )
    from mgray.check import check_amendments, check_run

    check_run(command.run)
    amendments = amendments_in(name)
    check_amendments(command.run, amendments)
    from mgray.trainer import train

    train(command.run, amendments=amendments, verbose=command.verbose)


TRAIN = Command(
    name="train",
    arguments="NAME",
    summary="Train a workload; the same name again goes on where that run stopped.",
    examples=(
        "mgray train folder --data.path videos/",
        "mgray train folder --data.path shards/ --scale.workers 2 --plan.epoch-factor 1.0 --name mine",
    ),
    workloads=True,
    run=_train,
)
