"""`mgray tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgray.cli.parse import SOME_WORKLOADS, Command, base_run, hint, parse
from mgray.config import Run
from mgray.errors import ConfigError
from tune_spaces import SPACES


@dataclass(frozen=True, kw_only=True)
class TuneArguments:
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    space: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cycles"
    """What is searched: cycles, optim or cluster (see tune_spaces/). No objective depends on cluster's workers: see the trials' times."""
    trials: int = 16
    """Trials; the first is the run as it is."""
    objective: Literal["accuracy", "cost"] = "accuracy"
    """accuracy: the best that --budget buys, every schedule made as long as that (its epochs are not searched then). cost: the least that reaches --target-top1."""
    budget: float = 1.0
    """Training cost (voxels) of a trial at most, over the run's own."""
    target_top1: float = 0.0
    """Validation accuracy to reach (a fraction; mAP where videos have several classes), where the objective is cost."""
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    """Compared at equal cost: asha ends the worse half at a quarter and a half of the budget, median those below it; pbt changes the learning rate and cycle
    length of the poorest third while they train; none lets all be."""
    concurrent: int = 0
    """Trials at once; 0 is as many as the cluster has CPUs or GPUs for, decoding included."""
    out: Path = Path("search")
    """Folder of the search; the same folder again goes on where it stopped."""
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show Ray's own logs here rather than in its files only."""


def _tune(arguments: Sequence[str]) -> None:
    rest = list(arguments)
    _, base = base_run(rest, f"write mgray tune NAME; mgray --help lists them, e.g. {SOME_WORKLOADS}")
    command = parse(TuneArguments, rest, TUNE, default=TuneArguments(run=base))
    if command.space not in SPACES:
        raise ConfigError("space", command.space, "is no search space", hint(command.space, SPACES))
    if command.objective == "cost" and not command.target_top1:
        raise ConfigError("target_top1", command.target_top1, "is missing", "give the top-1 to be reached, e.g. 0.75")
    from mgray.check import check_input

    check_input(command.run)
    from mgray.tune.objective import Goal
    from mgray.tune.settings import SearchSettings

    settings = SearchSettings(
        space=command.space,
        trials=command.trials,
        goal=Goal(objective=command.objective, budget=command.budget, target=command.target_top1 or 1.0),
        scheduler=command.scheduler,
        concurrent=command.concurrent,
        out=command.out,
    )
    from mgray.tune.search import search

    search(command.run, SPACES[command.space](command.run), settings, verbose=command.verbose)


TUNE = Command(
    name="tune",
    arguments="NAME",
    summary="Search for better cycles, optimiser settings or cluster settings with Ray Tune.",
    examples=(
        "mgray tune demo --space cycles --trials 16",
        "mgray tune demo --space cycles --objective cost --target-top1 0.9 --scheduler median --out cheap",
        "mgray train search/best.json",
    ),
    workloads=True,
    run=_tune,
)
