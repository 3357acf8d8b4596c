"""Shares of busy time, from counters that are made up."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from mgray.train import load
from mgray.train.load import LoadSampler

CPU = torch.device("cpu")


def test_share_of_cpu_time_between_two_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 ticks 20 were idle and 10 waited for disks; guest time is part of user time."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "STAT", stat)
    stat.write_text("cpu  100 0 50 1000 10 0 5 0 7 0\ncpu0 1 2 3\n")
    sampler = LoadSampler(CPU)
    stat.write_text("cpu  150 5 60 1020 20 2 6 2 57 0\ncpu0 1 2 3\n")
    assert sampler.sample() == {"cpu": pytest.approx(0.7), "gpu": None, "gpu_gib": None}
    assert sampler.sample()["cpu"] is None  # no time has passed


def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "none")
    assert LoadSampler(CPU).sample() == {"cpu": None, "gpu": None, "gpu_gib": None}


def test_this_machine() -> None:
    sampler = LoadSampler(CPU)
    while (share := sampler.sample()["cpu"]) is None:
        sum(range(10_000))
    assert 0 <= share <= 1


class FakeNvml:
    """Two GPUs of NVML; the process sees the second."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = {b"GPU-a": 1, b"GPU-b": 2}[uuid]
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, found: Any) -> int:
        found._obj.gpu = {1: 10, 2: 75}[handle.value or 0]
        return 0


def test_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "b"

    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 29)
    found = LoadSampler(torch.device("cuda:0")).sample()
    assert (found["gpu"], found["gpu_gib"]) == (0.75, 1.5)


def test_gpu_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    assert LoadSampler(torch.device("cuda:0")).sample()["gpu"] is None
