"""The command line on real data and on bad data: one line, exit status 2, no Ray before the check."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from mgray import cli
from mgray.data.shards.shard_set import ShardSet
from mgray.data.synthetic import write_motion_videos
from tests.support.shards import write_shards

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


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *named: str) -> None:
    """Exit status 2 and one line that names all of `named`."""
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("mgray: ") and text.count("\n") == 1 and "Traceback" not in text
    assert all(part in text for part in named), text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.path", "/missing"], "data.path = '/missing': does not exist"),
        (["--data.path", "EMPTY"], "has 1 class folder without a video: nothing"),
        (["--data.path", "DAMAGED"], "its manifest.json is no JSON"),
        (["--model.name", "resnet"], "model.name = 'resnet'"),
        (["--plan.frames", "0"], "plan.frames = 0"),
        (["--plan.epoch-factor", "0.01"], "plan.epoch_factor = 0.01: leaves no whole epoch"),
        (["--storage", "s3://bucket"], "storage = 's3://bucket'"),
        (["--storage", "FILE"], "is no folder that can be written to"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    arguments: list[str],
    named: str,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mgray.trainer.train", lambda *_, **__: pytest.fail("the check let it pass"))
    places = {"EMPTY": tmp_path / "empty", "DAMAGED": tmp_path / "shards", "FILE": tmp_path / "file"}
    shutil.copytree(videos, places["EMPTY"])
    (places["EMPTY"] / "nothing").mkdir()
    places["DAMAGED"].mkdir()
    (places["DAMAGED"] / "manifest.json").write_text("{")
    places["FILE"].write_text("")
    given = [str(places.get(argument, argument)) for argument in arguments]
    refused(["train", "smoke", "--data.path", str(videos), *given], capsys, named)


def test_a_refusal_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from mgray.cli import main; status = main(['train', 'smoke', '--data.path', '/missing']);"
        "assert not {'torch', 'ray'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "/missing" in done.stderr


def test_an_address_without_a_cluster_is_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        assert options["address"] == "head:1"
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    arguments = ["train", "smoke", "--data.path", str(videos), "--storage", str(tmp_path), "--scale.address", "head:1"]
    refused(arguments, capsys, "scale.address = 'head:1': cannot be joined (nobody answers)")


def test_a_video_that_does_not_decode_in_training_is_one_line(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers meet it, it is more than one per cent, and nobody tries again: another attempt would meet it too."""
    write_shards(tmp_path, damaged=2)
    arguments = ["train", "smoke", "--data.path", str(tmp_path / "set"), "--storage", str(tmp_path), "--name", "bad"]
    refused(
        [*arguments, "--plan.crop", "16"],
        capsys,
        "1 of 10 train videos are broken",
        "2.mp4 (a stored video does not decode",
    )
    assert (tmp_path / "bad" / "metrics.jsonl").read_text().count('"event": "start"') == 1


def test_workers_that_return_without_the_end_are_no_success(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a run is given up and its driver has died with the reason."""
    write_shards(tmp_path, train=2, val=1)
    monkeypatch.setattr("mgray.attempts.Attempts._fit", lambda attempts, size: None)
    arguments = ["train", "smoke", "--data.path", str(tmp_path / "set"), "--storage", str(tmp_path), "--name", "lost"]
    refused(arguments, capsys, "run = 'lost': ended before its schedule; start it again")


def test_train_evaluate_and_train_again(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    assert cli.main(["eval", str(tmp_path / "runs" / "mine"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["num_videos"] == 20 and 0.0 <= scores["top1"] <= 1.0
    assert cli.main(arguments) == 0
    assert "trained to its end already" in capsys.readouterr().out
    refused([*arguments, "--plan.lr", "0.5"], capsys, "name = 'mine'", "plan.lr 0.05 -> 0.5")


def test_too_many_broken_videos(ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one.mp4", "two.mp4"):
        os.makedirs(tmp_path / "v" / "left", exist_ok=True)
        (tmp_path / "v" / "left" / name).write_bytes(b"nothing")
    write_motion_videos(str(tmp_path / "v"), classes=2, clips_per_class=4, frames=3, width=32, height=24)
    refused(
        ["ingest", str(tmp_path / "v"), str(tmp_path / "shards")],
        capsys,
        " of 10 videos are broken",
        "left/",
        "max_broken",
    )
    assert cli.main(["ingest", str(tmp_path / "v"), str(tmp_path / "shards"), "--max-broken", "0.5"]) == 0
    manifest = ShardSet.open(str(tmp_path / "shards")).manifest
    assert sorted(video.path for video in manifest.broken) == ["left/one.mp4", "left/two.mp4"]
    assert sum(manifest.counts.values()) == 8
