"""torch.compile of a model: one static graph for each shape of clips, kept on disk for the next start."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
import torch._dynamo
from torch import nn

from mgray.errors import ConfigError

COMPILED = "compiled"
"""Folder of a storage that holds compiled graphs, for all its runs."""
RECOMPILE_LIMIT = 256
"""Shapes that a model may be compiled for; dynamo gives up after 8 by default, which the paper's schedule has."""


def check_compiler() -> None:
    """Refuse to compile where the tools for it are missing.

    Raises:
        ConfigError: no C++ compiler, or no header files of Python.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            "train.compile", True, f"needs a C++ compiler, and there is no {compiler}",
            "install one (apt install g++), name it in CXX, or leave --train.compile out",
        )  # fmt: skip
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise ConfigError(
            "train.compile", True, f"needs Python's header files, and {headers} has none",
            "install them (apt install python3-dev), or leave --train.compile out",
        )  # fmt: skip


def keep_graphs(folder: Path) -> None:
    """Keep what is compiled in a folder, where a restart finds it; `TORCHINDUCTOR_CACHE_DIR` goes before."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def compile_model(model: nn.Module) -> None:
    """Let a model compile itself at its first call with each shape, in place; its state dict stays as it is.

    A DistributedDataParallel around it reduces gradients after the backward pass rather than during it: splitting the graph at its
    buckets would give several graphs for a shape.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, RECOMPILE_LIMIT
    )
    torch._dynamo.config.optimize_ddp = False
    model.compile(dynamic=False)
