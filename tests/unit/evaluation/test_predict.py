"""What a model with known weights says of videos with known colours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mgray import cli
from mgray.data.decode.encode import encode_frames
from mgray.errors import ConfigError, VideoError
from mgray.evaluation.predict import Predictor
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.checkpoints import RUN

CLASSES = ("red", "green", "blue")
FPS = 10


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """The logit of a colour is its mean over the clip: a pure one has 4 times (1 - 0) / 0.225 more than the others."""
    model = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(3) * 4)
    worker = Worker(model.eval(), LocalSession(Path("unused")), RUN.data, RUN.train)
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, eval_batch=2))
    found = Predictor(checkpoint=Path("unused"), run=run, classes=CLASSES, worker=worker)
    monkeypatch.setattr(Predictor, "load", lambda path: found)
    return found


def write(path: Path, colours: str, frames: int = 16) -> str:
    """A video of `frames` frames of each colour, in turn."""
    pictures = np.zeros((frames * len(colours), 32, 48, 3), np.uint8)
    for number, colour in enumerate(colours):
        pictures[frames * number : frames * (number + 1), :, :, "rgb".index(colour)] = 255
    encode_frames(str(path), pictures, fps=FPS, gop=250)
    return str(path)


def test_the_windows_show_what_is_there(predictor: Predictor, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = predictor.predict(write(tmp_path / "v.mp4", "rgb"), on_progress=lambda *at: seen.append(at))
    assert [(window.start_s, window.end_s) for window in found.windows] == [
        (pytest.approx(0.8 * number), pytest.approx(0.8 * number + 0.8)) for number in range(6)
    ]  # 4 frames at a stride of 2, 10 a second
    assert [window.top[0].name for window in found.windows] == ["red", "red", "green", "green", "blue", "blue"]
    assert all(window.top[0].score > 0.99 and len(window.top) == 3 for window in found.windows)
    assert found.duration_s == pytest.approx(4.8) and seen == [(2, 6), (4, 6), (6, 6)]
    scores = {item.name: item.score for item in found.top}
    assert scores == {name: pytest.approx(1 / 3, abs=0.02) for name in CLASSES}


def test_windows_begin_as_often_as_asked(predictor: Predictor, tmp_path: Path) -> None:
    found = predictor.predict(write(tmp_path / "v.mp4", "rb", frames=12), every_s=0.5)
    assert [window.start_s for window in found.windows] == [0.0, 0.5, 1.0, 1.5, 1.6]
    assert [window.top[0].name for window in found.windows][::4] == ["red", "blue"]


def test_a_video_shorter_than_a_clip_is_one_window(predictor: Predictor, tmp_path: Path) -> None:
    found = predictor.predict(write(tmp_path / "v.mp4", "g", frames=3))
    assert [(window.start_s, window.end_s) for window in found.windows] == [(0.0, pytest.approx(0.3))]
    assert found.top[0].name == "green"


def test_a_file_that_is_no_video_is_named(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"VIDEO = '.*missing.mp4': does not exist"):
        predictor.predict(str(tmp_path / "missing.mp4"))


def test_the_command_does_the_others_too(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    videos = [str(tmp_path / "text.mp4"), write(tmp_path / "red[1].mp4", "r")]
    assert cli.main(["predict", "run", *videos]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"mgray: VIDEO = '{videos[0]}': is no video")
    lines = captured.out.splitlines()
    assert lines[0] == f"{videos[1]}  0:00:01.6, 2 windows"
    assert lines[1].startswith("  overall: red 100.0 %, ") and len(lines) == 4
    assert lines[3].startswith("  0:00:00.8 to 0:00:01.6  red 100.0 %")
    assert cli.main(["predict", "run", *videos[::-1], "--json"]) == 2
    red, text = json.loads(capsys.readouterr().out)
    assert red["top"][0]["class"] == "red" and [window["start_s"] for window in red["windows"]] == [0.0, 0.8]
    assert text == {"video": videos[0], "error": text["error"]} and "is no video" in text["error"]
    assert cli.main(["predict", "run", videos[1]]) == 0


def test_a_model_of_whole_videos_sees_the_whole_video_once(predictor: Predictor, tmp_path: Path) -> None:
    data = dataclasses.replace(predictor.run.data, sampling="segments")
    whole = dataclasses.replace(predictor, run=dataclasses.replace(predictor.run, data=data))
    path = write(tmp_path / "v.mp4", "rgbr")
    found = whole.predict(path)
    (window,) = found.windows
    assert (window.start_s, window.end_s) == (0.0, pytest.approx(6.4))
    assert found.top[0].name == "red"  # two of its four frames
    with pytest.raises(ConfigError, match="does not go with a model of whole videos"):
        whole.predict(path, every_s=0.5)
