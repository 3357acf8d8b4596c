"""The optimizer of a run: what a step does with the gradient of the global batch."""

from __future__ import annotations

import torch
from torch import nn

from mgray.config import TrainSection
from mgray.model.norm import GroupedBatchNorm3d


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """SGD or AdamW, fused, with weight decay on everything but batch and layer norms (as in the reference).

    The rate is set at each step. SGD's momentum buffer holds gradients without the rate (torch's formulation), as AdamW's moments
    do, so that neither needs a correction when the rate jumps.
    """
    layers = (module for module in model.modules() if isinstance(module, GroupedBatchNorm3d | nn.LayerNorm))
    norms = [p for layer in layers for p in layer.parameters()]
    held = {id(p) for p in norms}
    rest = [p for p in model.parameters() if id(p) not in held]
    groups = [{"params": rest, "weight_decay": section.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=section.betas, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=section.momentum, nesterov=section.nesterov, fused=True)


def match_strides(optimizer: torch.optim.Optimizer) -> None:
    """View each gradient with its parameter's strides: fused kernels compare them, of dimensions of size 1 too.

    Autograd lays a gradient out as its parameter but for those, so that nothing is moved.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = gradient.as_strided(parameter.shape, parameter.stride())


def match_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay each tensor of an optimizer's state out as its parameter: fused kernels go through both as they lie in memory, unasked."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                moved = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype, device=value.device)
                state[name] = moved.copy_(value)
