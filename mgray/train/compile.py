"""How a model is computed: its layout, torch.compile with one static graph for each shape of clips, and the choice of CUDA kernels."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch._dynamo
from torch import nn

from mgray.config import TrainSection

COMPILED = "compiled"
"""Folder of a storage that holds compiled graphs, for all its runs."""
RECOMPILE_LIMIT = 256
"""Shapes that a model may be compiled for; dynamo gives up after 8 by default, which the paper's schedule has."""


def channels_last(model: nn.Module) -> nn.Module:
    """Lay a model's weights out channels last, in place."""
    model = model.to(memory_format=torch.channels_last_3d)
    for weight in model.parameters():
        if weight.dim() == 5 and weight.shape[2:].numel() == 1:
            # 1x1x1 kernels have either layout; DDP wants the strides that their gradients get
            weight.data = weight.data.contiguous()
    return model


def keep_graphs(folder: Path) -> None:
    """Keep what is compiled in a folder, where a restart finds it; `TORCHINDUCTOR_CACHE_DIR` goes before."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Let a model compile itself at its first call with each shape, in place; its state dict stays as it is.

    A DistributedDataParallel around it reduces gradients after the backward pass rather than during it: splitting the graph at its
    buckets would give several graphs for a shape.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, RECOMPILE_LIMIT
    )
    torch._dynamo.config.optimize_ddp = False
    model.compile(dynamic=False, backend=backend)


def set_kernels(section: TrainSection) -> None:
    """Let cuDNN time its algorithms for each shape, and float32 products round their factors to TF32 where `train.tf32` says so."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = section.tf32
    torch.set_float32_matmul_precision("high" if section.tf32 else "highest")
