"""`mgray plan`: schedules, without torch or Ray."""

from __future__ import annotations

import itertools
import json as json_module
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mgray.cli.parse import Command, parse, take_name, workload
from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec, PlanTable
from mgray.pyslowfast import read_plan_spec

KINETICS_CLIPS = 240_436
PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
PYSLOWFAST_KEY = r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*"


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What the plan needs to know of the dataset."""

    num_samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Clips in the training set; default: those of data.path, else Kinetics-400's 240,436."""
    path: str = ""
    """Shards from `mgray ingest`, a folder of videos or a list, to count their clips."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the source names no split."""


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY VALUE ...]")] = ()
    """With --pyslowfast: settings over those of its file, e.g. MULTIGRID.EPOCH_FACTOR 1.0."""
    pyslowfast: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A PySlowFast YAML file to read the schedule from; --plan.* options apply over it."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the schedule into this file (.png, .svg or .pdf)."""
    step_times: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON with measured seconds of a step by global batch, e.g. {"64x32x224x224": 0.95}: predicts wall-clock time."""
    data: DataArguments = field(default_factory=DataArguments)
    plan: PlanSpec = field(default_factory=PlanSpec)


def _plan(arguments: Sequence[str]) -> None:
    base, rest = PlanArguments(), list(arguments)
    file, settings = _pyslowfast(rest)
    if file is not None:
        base = PlanArguments(plan=read_plan_spec(file, settings))
    elif (name := take_name(rest)) is not None:
        run = workload(name)
        base = PlanArguments(plan=run.plan, data=DataArguments(path=run.data.path, val_fraction=run.data.val_fraction))
    command = parse(PlanArguments, rest, PLAN, default=base)
    if not 0 < command.data.val_fraction < 1:
        raise ConfigError("data.val_fraction", command.data.val_fraction, "is outside (0, 1)", "use e.g. 0.2")
    unread = [argument for argument in command.overrides if argument not in settings or file is None]
    if unread:
        raise ConfigError(
            "argument", unread[0], "is not expected here",
            "write NAME first (mgray plan NAME --json); KEY VALUE pairs (SOLVER.BASE_LR 0.2) need --pyslowfast FILE",
        )  # fmt: skip
    plan = Plan.compile(command.plan, _num_samples(command.data))
    table = plan.table(None if command.step_times is None else _read_step_times(command.step_times))
    if command.plot is not None:
        from mgray.report.schedule import plot_schedule

        plot_schedule(plan, command.plot)
    if command.json:
        print(json_module.dumps(plan.to_json(), indent=2))
    else:
        _print_table(plan, table)
        if command.data.num_samples is None and not command.data.path:
            print(
                f"{KINETICS_CLIPS:,} clips are Kinetics-400's; for yours give --data.num-samples N or --data.path DIR"
            )


def _pyslowfast(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The PySlowFast file that is named, and the KEY VALUE pairs; both must be known before the rest can be parsed."""
    file, settings = None, []
    tokens = iter(arguments)
    for token in tokens:
        option, _, value = token.partition("=")
        if option == "--pyslowfast" and (value := value or next(tokens, "")):
            file = Path(value)
        elif re.fullmatch(PYSLOWFAST_KEY, token):
            settings += [token, *itertools.islice(tokens, 1)]
    return file, settings


def _num_samples(data: DataArguments) -> int:
    if data.num_samples is not None:
        return data.num_samples
    if not data.path:
        return KINETICS_CLIPS
    from mgray.check import is_shards
    from mgray.data.annotations import read_annotations
    from mgray.data.shard import ShardSet

    if is_shards(data.path):
        return ShardSet.open(data.path).num_samples("train")
    samples = read_annotations(data.path, val_fraction=data.val_fraction).samples
    return sum(sample.split == "train" for sample in samples)


def _read_step_times(path: Path) -> dict[str, float]:
    try:
        times = json_module.loads(path.read_text())
        return {str(batch): float(seconds) for batch, seconds in times.items()}
    except OSError as error:
        raise ConfigError("step_times", str(path), f"cannot be read ({error.strerror})", "name a JSON file") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            "step_times", str(path), "is no JSON of batches and seconds", 'write {"64x32x224x224": 0.95, ...}'
        ) from None


def _print_table(plan: Plan, table: PlanTable) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in table.head:
        grid.add_column(name, justify="right", overflow="fold")
    for phase, following, row in zip(plan.phases, [*plan.phases[1:], None], table.rows, strict=True):
        grid.add_row(*row, end_section=following is not None and following.stage != phase.stage)
    console.print(grid)
    console.print()
    for line in table.totals:
        console.print(line, highlight=False, soft_wrap=True)


PLAN = Command(
    name="plan",
    arguments="[NAME]",
    summary="Print a schedule: shapes, batches, learning rates, steps, and the predicted speed-up.",
    examples=(
        "mgray plan kinetics400_slowfast_r50",
        "mgray plan folder --data.path videos/ --plan.epoch-factor 1.0 --plot schedule.png",
        "mgray plan --pyslowfast SLOWFAST_8x8_R50.yaml MULTIGRID.LONG_CYCLE True --data.num-samples 240436 --json",
    ),
    workloads=True,
    run=_plan,
)
