"""Search spaces by name, as functions of the run that is searched around; `mgray tune NAME --space cycles` takes one."""

from __future__ import annotations

from collections.abc import Callable

from mgray.config import Run
from tune_spaces.cluster import cluster
from tune_spaces.cycles import cycles
from tune_spaces.optim import optim
from tune_spaces.ranges import Choice, LogUniform, Space, Uniform

SPACES: dict[str, Callable[[Run], Space]] = {"cycles": cycles, "optim": optim, "cluster": cluster}

__all__ = ["SPACES", "Choice", "LogUniform", "Space", "Uniform"]
