"""The command line on real data and on bad data: one line, exit status 2, no Ray before the check."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import ray

from mgray import cli
from mgray.data.synthetic import write_motion_videos

pytestmark = pytest.mark.ray
SMALL = [
    "--plan.epochs", "4", "--plan.lr-steps", "0", "3", "--plan.lr-factors", "1", "0.1", "--plan.batch", "4", "--plan.bn-group", "2",
    "--train.evals", "1", "--data.no-flip",
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "videos"
    write_motion_videos(str(root), classes=2, clips_per_class=8, frames=10, width=48, height=40)
    return root


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.path", "/missing"], "/missing"),
        (["--model.name", "resnet"], "model.name = 'resnet'"),
        (["--plan.frames", "0"], "plan.frames = 0"),
        (["--storage", "s3://bucket"], "storage"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    running = ray.is_initialized()
    assert cli.main(["train", "smoke", *arguments]) == 2
    text = capsys.readouterr().err
    assert named in text
    assert text.count("\n") == 1
    assert ray.is_initialized() == running


def test_train_evaluate_and_train_again(
    ray_instance: None,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder with one unreadable video among 101 and crops larger than the videos: both are said, and it trains."""
    monkeypatch.setenv("COLUMNS", "300")
    root = tmp_path / "videos"
    write_motion_videos(str(root), classes=2, clips_per_class=50, frames=3, width=32, height=24)
    next(iter(root.iterdir())).joinpath("broken.mp4").write_bytes(b"no video at all")
    name = ["--data.path", str(root), "--storage", str(tmp_path / "runs"), "--name", "mine"]
    arguments = ["train", "smoke", *name, *SMALL, "--plan.epoch-factor", "0.5"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "1 videos do not decode" in out and "broken.mp4" in out
    assert "plan.crop = 32 is larger than the short side of some videos (24 pixels)" in out
    assert "mine: top-1" in out
    assert cli.main(["eval", str(tmp_path / "runs" / "mine")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["num_clips"] == 20 and 0.0 <= scores["top1"] <= 1.0
    assert cli.main(arguments) == 0
    assert "trained to its end already" in capsys.readouterr().out
    assert cli.main([*arguments, "--plan.lr", "0.5"]) == 2
    assert "plan.lr 0.05 -> 0.5" in capsys.readouterr().err


def test_too_many_broken_videos(
    ray_instance: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.mp4", "two.mp4"):
        os.makedirs(tmp_path / "v" / "left", exist_ok=True)
        (tmp_path / "v" / "left" / name).write_bytes(b"nothing")
    write_motion_videos(str(tmp_path / "v"), classes=2, clips_per_class=4, frames=3, width=32, height=24)
    assert cli.main(["ingest", str(tmp_path / "v"), str(tmp_path / "shards")]) == 2
    text = capsys.readouterr().err
    assert "one.mp4" in text and "max_broken" in text
    assert text.count("\n") == 1
