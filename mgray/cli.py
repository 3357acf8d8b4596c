"""The `mgray` command line; thin: it parses, calls, and prints one line where a value cannot work."""

from __future__ import annotations

import argparse
import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mgray.errors import ConfigError, MgrayError
from mgray.plan import Plan, PlanSpec
from mgray.pyslowfast import read_plan_spec

EXIT_BAD_INPUT = 2


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What the plan needs to know of the dataset."""

    num_samples: int = 240_436
    """Clips in the training set (the default is Kinetics-400's)."""


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Print a schedule: its phases with shapes, batches, learning rates and steps, and its totals."""

    overrides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """KEY VALUE pairs over the PySlowFast configuration, e.g. MULTIGRID.EPOCH_FACTOR 1.0."""
    pyslowfast: Path | None = None
    """A PySlowFast YAML file to read the schedule from; --plan.* options apply over it."""
    json: bool = False
    """Print JSON instead of a table."""
    data: DataArguments = field(default_factory=DataArguments)
    plan: PlanSpec = field(default_factory=PlanSpec)


def _plan(arguments: Sequence[str]) -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--pyslowfast", type=Path)
    path = first.parse_known_args(arguments)[0].pyslowfast
    default = PlanCommand()
    if path is not None:
        command = tyro.cli(PlanCommand, args=arguments, prog="mgray plan", default=default)
        default = PlanCommand(pyslowfast=path, plan=read_plan_spec(path, command.overrides))
    command = tyro.cli(PlanCommand, args=arguments, prog="mgray plan", default=default)
    if command.overrides and path is None:
        raise ConfigError("overrides", command.overrides[0], "applies to no configuration", "add --pyslowfast FILE")
    plan = Plan.compile(command.plan, command.data.num_samples)
    if command.json:
        print(json_module.dumps(plan.to_json(), indent=2))
    else:
        totals = plan.to_json()["totals"]
        print(plan.describe())
        print(f"baseline {totals['baseline_steps']} steps: {totals['step_ratio']:.2f}x fewer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a value that cannot work)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] != "plan":
        print("usage: mgray plan [--pyslowfast CONFIG.yaml [KEY VALUE ...]] [--json]; see mgray plan --help")
        return 0 if arguments in (["--help"], ["-h"]) else EXIT_BAD_INPUT
    try:
        _plan(arguments[1:])
    except MgrayError as error:
        print(f"mgray: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0
