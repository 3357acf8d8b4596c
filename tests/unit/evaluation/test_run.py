"""A checkpoint is evaluated on the clips and with the figures that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mgray import cli
from mgray.config import ScaleSection
from mgray.data.clip import Views
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import CheckpointError, ConfigError, DataError
from mgray.evaluation.run import Viewing, device_of, evaluate_run
from tests.support.checkpoints import write_run
from tests.support.shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("run"), train=2, val=6, classes=3, size=(48, 32))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> str:
    return str(write_run(tmp_path_factory.mktemp("runs") / "mine", shards))


def test_an_evaluation_says_what_it_saw(run: str) -> None:
    seen: list[tuple[int, int]] = []
    viewing = Viewing(views=Views(clips=2, crops=3), pool="max", short_side=24)
    result = evaluate_run(run, viewing, on_progress=lambda *at: seen.append(at))
    assert seen == [(number, 6) for number in range(7)]
    tree = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (tree["views"], tree["pool"], tree["short_side"], tree["crop"], tree["frames"]) == ("2x3", "max", 24, 16, 4)
    assert tree["device"] in ("cpu", "cuda")
    assert (tree["step"], tree["num_videos"], len(tree["classes"])) == (7, 6, 3)
    assert tree["top5"] == 1.0 and 0 <= tree["top1"] <= 1 and 0 < tree["map"] <= 1
    assert sum(row["support"] for row in tree["classes"]) == 6
    assert result.paths == [f"{number}.mp4" for number in range(2, 8)]


@pytest.mark.parametrize(
    ("gpu", "gpus", "grows", "expected"),
    [
        ("auto", 0.0, False, "cpu"),
        ("auto", 4.0, False, "cuda"),
        ("auto", 3.0, True, "cuda"),
        ("no", 4.0, False, "cpu"),
        ("yes", 0.0, True, "cpu"),
        ("auto", 3.0, False, None),
    ],
)
def test_workers_take_a_gpu_each(gpu: str, gpus: float, grows: bool, expected: str | None) -> None:
    scale = ScaleSection(gpu=gpu)  # type: ignore[arg-type]
    if expected is not None:
        assert device_of(scale, 4, gpus, grows=grows) == expected
        return
    with pytest.raises(ConfigError, match=r"workers = 4: is more than the 3 GPUs .*; give at most 3"):
        device_of(scale, 4, gpus, grows=grows)


def test_a_larger_crop_takes_a_larger_short_side(run: str) -> None:
    assert evaluate_run(run).source.short_side == 20
    wide = evaluate_run(run, Viewing(crop=32)).source
    assert (wide.short_side, wide.shape.height, wide.shape.width) == (32, 32, 32)


def test_what_cannot_be_evaluated_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="short_side = 8: is smaller than the crop of 16"):
        evaluate_run(run, Viewing(short_side=8))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evaluate_run(str(tmp_path))
    for name in ("other", "none"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="has other classes"):
        evaluate_run(run, data=write_shards(tmp_path / "other", train=1, val=1, classes=2).root)
    with pytest.raises(DataError, match="holds no video to validate on"):
        evaluate_run(run, data=write_shards(tmp_path / "none", train=1, val=0, classes=3).root)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The videos of `shards`, of which the validation's second and last are noise."""
    root = tmp_path_factory.mktemp("damaged")
    return write_shards(root, train=2, val=6, classes=3, size=(48, 32), damaged=(3, 7)).root


def test_broken_videos_are_left_out_and_said(
    run: str, damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "p.parquet"
    options = ["--data", damaged, "--max-broken", "0.4", "--predictions", str(table)]
    assert cli.main(["eval", run, *options]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split(": ")[2] for line in lines] == ["3.mp4 was left out", "7.mp4 was left out"]
    assert all(line.startswith("mgray: warning: ") and "does not decode" in line for line in lines)
    assert "4 videos, 3 classes" in captured.out and "2 broken videos" in captured.out
    rows = pq.read_table(table).to_pylist()
    assert [row["path"] for row in rows] == [f"{number}.mp4" for number in (2, 4, 5, 6, 3, 7)]
    assert [bool(row["broken"]) for row in rows] == [False] * 4 + [True] * 2
    assert cli.main(["eval", run, *options, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["num_videos"] == 4 and [item["path"] for item in tree["broken"]] == ["3.mp4", "7.mp4"]
    assert sum(row["support"] for row in tree["classes"]) == 4


def test_too_many_broken_videos_are_refused_with_the_list(run: str, damaged: str, tmp_path: Path) -> None:
    bound = r"2 of 6 val videos are broken, more than data.max_broken = 0.01: 3.mp4 \(.+\); .+ or raise --max-broken"
    with pytest.raises(DataError, match=bound):
        evaluate_run(run, data=damaged)
    with pytest.raises(DataError, match=r"2 of 6 .+ 0.3: 3.mp4 \(.+\), 7.mp4 \("):
        evaluate_run(run, Viewing(max_broken=0.3), data=damaged)
    noise = write_shards(tmp_path, train=1, val=2, classes=3, damaged=(1, 2)).root
    with pytest.raises(DataError, match="2 of 2 val videos are broken"):
        evaluate_run(run, Viewing(max_broken=1.0), data=noise)
    with pytest.raises(ConfigError, match=r"max_broken = 2\.0: is outside"):
        Viewing(max_broken=2.0)


def test_the_command_prints_and_writes(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, table = tmp_path / "new" / "confusion.png", tmp_path / "new" / "p.parquet"
    options = ["--views", "2x1", "--plot", str(picture), "--predictions", str(table)]
    assert cli.main(["eval", run, *options, "--per-class"]) == 0
    captured = capsys.readouterr()
    for words in ("2x1 of 4x16x16, stride 2, short side 20; mean of the scores", "top-1", "top-3", "mAP", "class2"):
        assert words in captured.out
    assert captured.err == "" and "\x1b[" not in captured.out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    rows = pq.read_table(table).to_pylist()
    assert [row["path"] for row in rows] == [f"{number}.mp4" for number in range(2, 8)]
    assert [row["label"] for row in rows] == [f"class{number % 3}" for number in range(2, 8)]
    assert cli.main(["eval", run, "--views", "2x1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["top1"] == pytest.approx(sum(row["label"] == row["predicted"] for row in rows) / 6)
