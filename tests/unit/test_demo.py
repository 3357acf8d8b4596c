"""The demo on other data: as much training, clips that span more of a longer video."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from mgray import demo as demo_module
from mgray.config import Run
from mgray.data.clip import VideoInfo
from mgray.demo import MAX_STRIDE, demo, fitted, stretched
from mgray.errors import DataError
from mgray.plan import Plan
from mgray.trainer import TrainResult
from workloads import WORKLOADS


class FakeShards:
    """As many clips as are wanted, all of one length."""

    classes = ("a", "b")

    def __init__(self, clips: int, frames: int) -> None:
        self.clips, self.frames = clips, frames

    def num_samples(self, split: str) -> int:
        return self.clips

    def info(self, split: str, sample: int) -> VideoInfo:
        assert sample < self.clips
        return VideoInfo(self.frames, 64, 48, 25.0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that the demo would train."""
    runs: list[Run] = []

    def train(run: Run, *, console: Console) -> TrainResult:
        runs.append(run)
        return TrainResult(folder=Path(run.storage) / run.name, steps=1, train_s=1.0, score=0.5)

    monkeypatch.setattr(demo_module, "ray_running", lambda run: contextlib.nullcontext())
    monkeypatch.setattr(demo_module, "num_gpus", lambda: 0.0)
    monkeypatch.setattr(demo_module, "open_data", lambda run, console: FakeShards(100, 64))
    monkeypatch.setattr(demo_module, "train", train)
    monkeypatch.setattr(demo_module, "read_run", lambda folder: folder)
    monkeypatch.setattr(demo_module, "print_comparison", lambda records, console: None)
    monkeypatch.setattr(demo_module, "write_report", lambda folders, out, command: out / "report.html")
    return runs


def test_both_schedules_are_trained_on_the_same_clips(trained: list[Run], tmp_path: Path) -> None:
    page = demo(data=None, out=tmp_path / "out", console=Console(file=io.StringIO()))
    assert page == tmp_path / "out" / "report.html"
    baseline, multigrid = trained
    assert baseline.plan.is_constant and not multigrid.plan.is_constant
    assert (baseline.name.split("_")[-1], multigrid.name.split("_")[-1]) == ("baseline", "multigrid")
    assert baseline.storage == multigrid.storage == str(tmp_path / "out" / "runs")
    for section in ("data", "model", "train", "feed", "scale"):
        assert getattr(baseline, section) == getattr(multigrid, section)
    for name in ("frames", "crop", "batch", "jitter_min", "jitter_max", "bn_group"):
        assert getattr(baseline.plan, name) == getattr(multigrid.plan, name)


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, "auto"), (1.0, "no"), (2.0, "auto")])
def test_one_gpu_for_two_workers_is_left_aside(
    trained: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, expected: str
) -> None:
    monkeypatch.setattr(demo_module, "num_gpus", lambda: gpus)
    demo(data=None, out=tmp_path / "out", console=Console(file=io.StringIO()))
    assert [run.scale.gpu for run in trained] == [expected, expected]


def test_other_videos_are_fitted_and_may_be_gone_on_with(trained: list[Run], tmp_path: Path) -> None:
    videos = tmp_path / "my videos"
    for name in ("a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"")
    for _ in range(2):
        demo(data=str(videos), out=tmp_path, console=Console(file=io.StringIO()))
    assert trained[:2] == trained[2:]
    assert [run.name for run in trained[:2]] == ["my videos_baseline", "my videos_multigrid"]
    for run in trained:
        assert run.data.path == str(videos)
        assert run.plan.stride == min(MAX_STRIDE, 64 // run.plan.frames)


def test_data_that_cannot_be_used_is_refused_before_ray(trained: list[Run], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        demo(data=str(tmp_path / "missing"), out=tmp_path)
    assert not trained


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (31, 1), (64, 4), (10_000, MAX_STRIDE)])
def test_clips_span_more_of_a_longer_video(frames: int, stride: int) -> None:
    run = WORKLOADS["demo"]()
    run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, frames=16))
    assert fitted(run, FakeShards(800, frames)).plan.stride == stride


def test_epochs_follow_the_number_of_clips() -> None:
    plan = WORKLOADS["demo"]().plan
    usual = Plan.compile(plan, 800).num_steps
    for clips in (40, 400, 800, 1600):
        other = stretched(plan, clips, stride=3)
        assert other.stride == 3
        assert 0.5 * usual < Plan.compile(other, clips).num_steps < 2 * usual
    assert stretched(plan, 800, stride=1) == plan


def test_many_clips_still_have_every_stage() -> None:
    for name in ("demo", "demo_baseline"):
        plan = stretched(WORKLOADS[name]().plan, 1_000_000, stride=1)
        assert plan.epochs > plan.lr_steps[-1] > 0
