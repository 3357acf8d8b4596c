"""Everything of a step is where the model is: on tensors of a GPU that torch only imagines (FakeTensorMode), which refuses to mix devices.

Nothing is computed, backward passes are left out (the engine wants a driver), streams and pinned memory are those of no device.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mgray.config import DataSection, ModelSection, TrainSection
from mgray.data.source import Block
from mgray.model import build_model
from mgray.model.dropout import convert_dropout
from mgray.model.norm import defer_running_stats
from mgray.plan import BatchShape, ClipShape
from mgray.train.average import WeightAverage
from mgray.train.optimizer import build_optimizer
from mgray.train.session import LocalSession
from mgray.train.step import Worker

GPU = torch.device("cuda", 0)
SHAPE = BatchShape(6, 8, 32, 32)
SLOWFAST = ModelSection(name="slowfast", depth=10, width=8, alpha=4, fusion_kernel=3, dropout=0.5)


class Stream:
    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def backward(self: Tensor) -> None:
        assert self.device == GPU and self.dim() == 0

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, _: None)
    monkeypatch.setattr(Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def block(clips: int) -> Block:
    count = np.arange(clips)
    return Block(0, 0, np.zeros((clips, SHAPE.frames, SHAPE.height, SHAPE.width, 3), np.uint8), count % 3, count, count)


def on_the_gpu(section: ModelSection) -> nn.Module:
    with GPU:
        model = convert_dropout(build_model(section, 3))
    defer_running_stats(model)
    return model.train()


def worker(model: nn.Module, train: TrainSection) -> Worker:
    session = LocalSession(Path("unused"))
    session.device = GPU  # type: ignore[misc]
    base = ClipShape(SHAPE.frames, SHAPE.height, SHAPE.width)
    return Worker(model, session, DataSection(), train, None, base)


@pytest.mark.parametrize(
    "train",
    [
        TrainSection(optimizer="adamw", mixup=0.4, clip_grad=1.0, micro_groups=1),
        TrainSection(optimizer="adamw", cutmix=1.0, label_smoothing=0.1, channels_last=False),
        TrainSection(optimizer="adamw", randaugment=9, precision="float32"),
    ],
    ids=["mixup", "cutmix", "randaugment"],
)
def test_a_step_mixes_no_devices(imagined: None, train: TrainSection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused SGD has no imaginary form, AdamW has; its gradients come from nowhere."""
    model = on_the_gpu(SLOWFAST)

    def backward(self: Tensor) -> None:
        assert self.device == GPU and self.dim() == 0
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    ours = worker(model, train)
    ours._tries_memory = False
    optimizer, average = build_optimizer(model, train), WeightAverage(model, 0.9, 8)
    sums = ours.step(block(6), SHAPE, 2, torch.arange(6), optimizer)
    assert sums.device == GPU
    assert all(optimizer.state[parameter]["exp_avg"].device == GPU for parameter in model.parameters())
    average.update(6, 0)
    with average.in_place():
        ours.observe(block(6), SHAPE, 2)
        model.eval()
        assert ours.predict(block(4)).device == GPU


class Waits(TorchDispatchMode):
    """Copies to the GPU that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        waits = func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking")
        if waits and args[0].device.type == "cpu" and result.device == GPU:
            self.found.append("".join(traceback.format_stack(limit=8)))
        return result


def test_a_step_waits_for_no_copy(imagined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does keeps the next step's clips from going up beside this one."""
    model = on_the_gpu(SLOWFAST)

    def backward(self: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    train = TrainSection(optimizer="adamw", mixup=0.4)
    ours, optimizer = worker(model, train), build_optimizer(model, train)
    with Waits() as seen:
        torch.zeros(1).to(GPU)
    assert len(seen.found) == 1
    with Waits() as seen:
        ours.step(block(6), SHAPE, 2, torch.arange(6), optimizer)
    assert not seen.found, seen.found[0]


def test_memory_is_tried_there(imagined: None) -> None:
    """Blank clips go through before a phase."""
    assert worker(on_the_gpu(SLOWFAST), TrainSection(optimizer="adamw", mixup=0.4))._fits(SHAPE, 2, 2)


def test_devices_that_do_not_match_are_seen(imagined: None) -> None:
    ours = worker(on_the_gpu(SLOWFAST), TrainSection(optimizer="adamw"))
    ours._scale_C = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"device"):
        ours.predict(block(2))
