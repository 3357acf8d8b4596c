"""What a parameter of a search may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several settings by its label; each sets fields of a run, by dotted name."""

    options: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Uniform:
    """A field of a run between two bounds."""

    field: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A field of a run between two positive bounds, by order of magnitude."""

    field: str
    low: float
    high: float


Space: TypeAlias = Mapping[str, Choice | Uniform | LogUniform]
"""Parameters by name."""
