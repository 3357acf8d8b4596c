"""The optimizer: which parameters decay, its recursion over jumping rates, fused kernels against the plain ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mgray.config import TrainSection
from mgray.model.norm import convert_batchnorm
from mgray.train.optimizer import build_optimizer, match_state, match_strides


def test_norms_alone_have_no_weight_decay() -> None:
    layers = [nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2)]
    model = convert_batchnorm(nn.Sequential(*layers))
    decayed, free = build_optimizer(model, TrainSection(weight_decay=0.01)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert [p.shape for p in free["params"]] == [(4,), (4,), (2,), (2,)]
    assert len(decayed["params"]) == 4


def test_momentum_needs_no_correction_when_the_rate_jumps() -> None:
    """v = mu v + g; p -= lr (g + mu v): the buffer holds no rate (against the recursion, in float64)."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = build_optimizer(model, TrainSection(momentum=0.9, weight_decay=0.0))
    p = v = 0.0
    p = 1.0
    for lr in (0.8, 0.4, 0.4, 0.05, 0.8):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        (weight.square() * 0.5).sum().backward()
        gradient = p
        optimizer.step()
        v = 0.9 * v + gradient
        p -= lr * (gradient + 0.9 * v)
        assert weight.item() == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_the_closed_sum_over_gradients_at_each_step_s_own_rate(nesterov: bool) -> None:
    """p_n = p_0 - sum_k lr_k (sum_i<=k mu^(k-i) g_i [+ Nesterov's look-ahead]), whatever the rates were before.

    A buffer with the rate in it (Caffe's u = mu u + lr g) comes to the same only if it is rescaled at each jump (Goyal et
    al., arXiv 1706.02677, section 3, remark 3). Multigrid's rates jump 8-fold from one phase to the next.
    """
    rates, mu, decay = [0.8] * 3 + [0.4] * 3 + [0.1] * 3 + [0.8] * 3, 0.9, 0.01
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=len(rates))
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = build_optimizer(model, TrainSection(momentum=mu, weight_decay=decay, nesterov=nesterov))
    seen, corrected, uncorrected = [], [0.0, 1.0], [0.0, 1.0]
    gradients: list[float] = []
    for step, (lr, slope) in enumerate(zip(rates, slopes, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        gradients.append(slope + decay * weight.item())
        optimizer.zero_grad()
        (weight * slope).sum().backward()
        optimizer.step()
        seen.append(weight.item())
        jump = lr / rates[max(0, step - 1)]
        for caffe, factor in ((corrected, jump), (uncorrected, 1.0)):
            caffe[0] = mu * factor * caffe[0] + lr * gradients[-1]
            caffe[1] -= lr * gradients[-1] + mu * caffe[0] if nesterov else caffe[0]
    want = 1.0
    for k, lr in enumerate(rates):
        velocity = sum(mu ** (k - i) * gradients[i] for i in range(k + 1))
        want -= lr * (gradients[k] + mu * velocity if nesterov else velocity)
        assert seen[k] == pytest.approx(want, rel=1e-12)
    assert corrected[1] == pytest.approx(seen[-1], rel=1e-12)
    assert abs(uncorrected[1] - seen[-1]) > 0.1


def test_adamw_is_the_closed_form_of_its_moments_at_each_step_s_own_rate() -> None:
    """p -= lr (decay p + m^ / (sqrt(v^) + eps)), m^ and v^ weighted means of all gradients (arXiv 1711.05101): no rate in them."""
    rates, betas, decay = [0.08] * 3 + [0.01] * 3 + [0.08] * 3, (0.8, 0.95), 0.05
    slopes = np.random.default_rng(1).normal(size=len(rates))
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = build_optimizer(model, TrainSection(optimizer="adamw", betas=betas, weight_decay=decay))
    want = 1.0
    for step, (lr, slope) in enumerate(zip(rates, slopes, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        (weight * slope).sum().backward()
        optimizer.step()
        ages = np.arange(step, -1, -1)
        mean, square = (
            float((beta**ages * slopes[: step + 1] ** power).sum() / (beta**ages).sum())
            for power, beta in zip((1, 2), betas, strict=True)
        )
        want -= lr * (decay * want + mean / (square**0.5 + 1e-8))
        assert weight.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_kernels_compute_what_plain_ones_do(name: str) -> None:
    """Weights laid out channels last, and gradients whose strides differ where a dimension has size 1."""
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)), nn.Conv3d(4, 5, (3, 1, 1))).double()
        model = model.to(memory_format=torch.channels_last_3d)
        optimizer = build_optimizer(model, TrainSection(optimizer=name, weight_decay=0.01))  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            group |= {"lr": 0.1, "fused": fused, "foreach": False}
        for _ in range(3):
            for parameter in model.parameters():
                wide = [
                    stride + 7 * (size == 1) for size, stride in zip(parameter.shape, parameter.stride(), strict=True)
                ]
                gradient = torch.empty_strided(parameter.shape, wide, dtype=parameter.dtype)
                parameter.grad = gradient.copy_(parameter.detach().sin())
            match_strides(optimizer)
            assert all(p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters())
            optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_of_another_layout_counts_element_by_element(name: str) -> None:
    """As a checkpoint of a run without `train.channels_last` has it."""
    section = TrainSection(optimizer=name)  # type: ignore[arg-type]
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    torch.manual_seed(0)
    first, *gradients = (torch.randn(4, 3, 2, 3, 3) for _ in range(4))
    models, optimizers = [], []
    for layout in layouts:
        model = nn.Conv3d(3, 4, (2, 3, 3), bias=False)
        model.weight.data = first.clone().contiguous(memory_format=layout)
        models.append(model)
        optimizers.append(build_optimizer(model, section))
        for group in optimizers[-1].param_groups:
            group["lr"] = 0.1
    for gradient in gradients[:2]:
        models[0].weight.grad = gradient.clone()
        optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    match_state(optimizers[1])
    for model, optimizer, layout in zip(models, optimizers, layouts, strict=True):
        model.weight.grad = gradients[2].clone().contiguous(memory_format=layout)
        match_strides(optimizer)
        optimizer.step()
    torch.testing.assert_close(models[1].weight, models[0].weight, rtol=1e-6, atol=1e-6)
