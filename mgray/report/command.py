"""The command line that trains a run again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from mgray.config import Run


def options(run: Run) -> list[str]:
    """Every field of the run as options of the command line, e.g. `--plan.epoch-factor 1.5`."""
    return list(_options(run, ""))


def train_command(run: Run) -> str:
    """`mgray train folder` with every field of the run, one section a line; right whatever the defaults are."""
    lines = ["mgray train folder", shlex.join(_options(run, "", sections=False))]
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(shlex.join(_options(value, f"{field.name}.")))
    return " \\\n  ".join(lines)


def _options(section: Any, prefix: str, *, sections: bool = True) -> Iterator[str]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        name = f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            if sections:
                yield from _options(value, f"{prefix}{field.name}.")
        elif isinstance(value, bool):
            head, dot, last = name.rpartition(".")
            yield f"--{name}" if value else f"--{head}{dot}no-{last}"
        elif isinstance(value, tuple):
            yield f"--{name}"
            yield from map(str, _flat(value))
        else:
            yield from (f"--{name}", str(value))


def _flat(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value
