"""`mgray ctl`: look at a run that is in progress, and tell it what to do."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast, get_args

import tyro

from mgray.cli.parse import Command, demand, hint, parse
from mgray.errors import ConfigError
from mgray.plan.state import Request, RequestKind
from mgray.presence import use_own_token

ACTIONS = ("status", *get_args(RequestKind))
VALUES = {"extend": "EPOCHS", "rate": "FACTOR", "resize": "WORKERS"}
"""Actions that need a value; advance may have one."""


@dataclass(frozen=True, kw_only=True)
class CtlArguments:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """Name of a run under --storage, or its folder."""
    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ACTION")] = ""
    """status; stop (save and end, the same mgray train goes on); checkpoint; resize WORKERS (0: as configured); advance [SHARE] to the next phase,
    which gives that share of the saved voxels to the later phases; extend EPOCHS of this phase; rate FACTOR on the learning rate."""
    value: Annotated[float | None, tyro.conf.Positional, tyro.conf.arg(metavar="[VALUE]")] = None
    """Of resize, extend, rate and advance."""
    at_step: Annotated[int, tyro.conf.arg(metavar="STEP")] = 0
    """The step before which it is done, on all workers at once; 0 is as soon as can be."""
    storage: str = "runs"
    """Folder that holds the runs."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of lines."""


def _ctl(arguments: Sequence[str]) -> None:
    command = parse(CtlArguments, arguments, CTL)
    demand("RUN", command.run, "mgray ctl RUN ACTION")
    if command.action not in ACTIONS:
        raise ConfigError("ACTION", command.action, "is no action", hint(command.action, ACTIONS))
    if command.action in VALUES and command.value is None:
        raise ConfigError("VALUE", "", "is missing", f"write mgray ctl RUN {command.action} {VALUES[command.action]}")
    if command.value is not None and command.action not in (*VALUES, "advance"):
        raise ConfigError("VALUE", command.value, f"does not go with {command.action}", "leave it out")
    if command.action != "status":
        kind = cast(RequestKind, command.action)
        Request("", kind, command.value or 0.0, command.at_step).check_values()
    given = Path(command.run).expanduser()
    folder = Path(os.path.abspath(given if given.is_dir() else Path(command.storage).expanduser() / command.run))
    if not (folder / "run.json").is_file():
        raise ConfigError(
            "RUN", command.run, f"is no run ({folder} holds no run.json)", "name a run's folder, or give --storage"
        )
    use_own_token(folder)
    from mgray.control import driver_of
    from mgray.display import ctl_lines, ctl_tree

    with driver_of(folder) as driver:
        from mgray.control import ask, status_of

        if command.action == "status":
            status = status_of(driver)
        else:
            status = ask(
                driver,
                cast(RequestKind, command.action),
                command.value or 0.0,
                command.at_step,
                lambda message: print(f"{folder.name}: {message}", file=sys.stderr, flush=True),
            )
    if command.json:
        print(json_module.dumps(ctl_tree(status), indent=2))
        return
    if command.action != "status":
        print(f"{folder.name}: {command.action} is taken up by all workers")
    for line in ctl_lines(folder.name, status):
        print(line)


CTL = Command(
    name="ctl",
    arguments="RUN ACTION [VALUE]",
    summary="Look at a run that is in progress, stop, save, resize it, or change what is left of its schedule.",
    examples=(
        "mgray ctl folder status",
        "mgray ctl folder resize 4",
        "mgray ctl folder advance",
        "mgray ctl folder extend 5 --at-step 20000",
        "mgray ctl runs/folder stop",
    ),
    run=_ctl,
)
