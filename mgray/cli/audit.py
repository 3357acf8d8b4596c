"""`mgray audit`."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgray.cli.parse import Command, demand, parse

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class AuditArguments:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """A run's folder, finished or in progress."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a line."""


def _audit(arguments: Sequence[str]) -> None:
    command = parse(AuditArguments, arguments, AUDIT)
    demand("RUN", command.run, "mgray audit RUN")
    from mgray.audit import audit

    found = audit(Path(command.run).expanduser())
    print(json_module.dumps(found.to_json(), indent=2) if command.json else str(found))
    if found.failure is not None:
        raise SystemExit(EXIT_FAILED)


AUDIT = Command(
    name="audit",
    arguments="RUN",
    summary="Prove from a run's ledger that it trained on every position once, as planned; exit status 1 where it did not.",
    examples=("mgray audit runs/folder",),
    run=_audit,
)
