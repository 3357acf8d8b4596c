"""Bad input is refused in one line before anything starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mgray.check import check_run, differences, is_shards, run_folder
from mgray.config import DataSection, FeedSection, ModelSection, Run, TrainSection
from mgray.data.synthetic import write_motion_videos
from mgray.errors import MgrayError
from mgray.plan import PlanSpec
from tests.support.shards import write_shards


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_motion_videos(str(root), classes=2, clips_per_class=2, frames=2, width=32, height=32)
    return root


def refused(run: Run, *named: str) -> None:
    with pytest.raises(MgrayError) as caught:
        check_run(run)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_each_problem_is_named(videos: Path, tmp_path: Path) -> None:
    good = Run(storage=str(tmp_path), data=DataSection(path=str(videos)))
    check_run(good)
    refused(dataclasses.replace(good, data=DataSection()), "data.path")
    refused(dataclasses.replace(good, data=DataSection(path="/missing")), "data.path", "/missing")
    refused(dataclasses.replace(good, name="shards"), "name = 'shards'")
    refused(dataclasses.replace(good, storage="s3://bucket/runs"), "storage", "s3://bucket/runs")
    refused(dataclasses.replace(good, model=ModelSection(name="resnet")), "model.name", "resnet", "slowfast")
    refused(dataclasses.replace(good, model=ModelSection(depth=51)), "model.depth", "51")
    refused(dataclasses.replace(good, model=ModelSection(width=12)), "model.width", "12", "model.beta_inv = 8")
    refused(dataclasses.replace(good, plan=PlanSpec(epoch_factor=0.001)), "plan.epoch_factor", "no whole epoch")
    for plan in (PlanSpec(bn_group=1), PlanSpec(batch=1)):
        check_run(dataclasses.replace(good, plan=plan))
        refused(dataclasses.replace(good, plan=plan, train=TrainSection(cutmix=1.0)), "= 1", "train.cutmix")


def test_a_storage_that_is_no_folder(videos: Path, tmp_path: Path) -> None:
    good = Run(name="mine", storage=str(tmp_path / "new" / "runs"), data=DataSection(path=str(videos)))
    check_run(good)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    refused(dataclasses.replace(good, storage=str(tmp_path / "file")), "storage", "file is no folder")
    refused(dataclasses.replace(good, storage=str(tmp_path / "file" / "runs")), "storage", "file is no folder")
    refused(dataclasses.replace(good, storage=str(tmp_path), name="file"), "storage", "another --name")


def test_shards_are_looked_into(tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=1)
    run = Run(storage=str(tmp_path / "runs"), data=DataSection(path=str(tmp_path / "set")))
    check_run(run)
    shard = next((tmp_path / "set").glob("*/00000.arrow"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    refused(run, "data.path", "00000.arrow is damaged")
    shard.unlink()
    refused(run, "data.path", "00000.arrow is missing")
    shard.write_bytes(content)
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    refused(run, "data.path", "version 1, this code reads 2")


def test_files_are_not_read_from_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=1)
    run = Run(
        storage=str(tmp_path / "runs"), data=DataSection(path=str(tmp_path / "set")), feed=FeedSection(source="files")
    )
    refused(run, "feed.source", "give the videos themselves")


def test_a_list_is_looked_into(videos: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in videos.rglob("*.mp4"))
    listed = tmp_path / "list.csv"
    run = Run(storage=str(tmp_path), data=DataSection(path=str(listed)))
    listed.write_text("".join(f"{path},{Path(path).parent.name}\n" for path in paths))
    check_run(run)
    listed.write_text("".join(f"{path},{Path(path).parent.name}\n" for path in [*paths, "/nowhere/missing.mp4"]))
    refused(run, str(listed), "/nowhere/missing.mp4")
    listed.write_text("path,label\na.mp4\n")
    refused(run, str(listed), "line 2")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_motion_videos(str(tmp_path / "v"), classes=2, clips_per_class=2, frames=2, width=32, height=32)
    (tmp_path / "v" / "nothing").mkdir()
    refused(Run(storage=str(tmp_path), data=DataSection(path=str(tmp_path / "v"))), "nothing")


def test_a_name_in_use_names_what_differs(videos: Path, tmp_path: Path) -> None:
    run = Run(name="mine", storage=str(tmp_path), data=DataSection(path=str(videos)))
    run_folder(run).mkdir()
    (run_folder(run) / "run.json").write_text(json.dumps(run.to_json()))
    check_run(dataclasses.replace(run, scale=dataclasses.replace(run.scale, workers=7)))
    other = dataclasses.replace(run, plan=dataclasses.replace(run.plan, lr=0.5))
    refused(other, "name = 'mine'", "plan.lr 0.1 -> 0.5")
    both = dataclasses.replace(other, train=dataclasses.replace(run.train, seed=3))
    refused(both, "plan.lr 0.1 -> 0.5, train.seed 0 -> 3", str(run_folder(run)))
    for content in ("{}x", "[]", '{"plan": {"unknown": 1}}'):
        (run_folder(run) / "run.json").write_text(content)
        refused(run, "name = 'mine'", "another mgray")


def test_what_does_not_change_the_result_may_change(videos: Path, tmp_path: Path) -> None:
    run = Run(storage=str(tmp_path), data=DataSection(path=str(videos)))
    moved = dataclasses.replace(run, data=DataSection(path="/elsewhere", max_broken=0.5))
    assert differences(run.to_json(), moved) == ""
    assert moved.digest() == run.digest()
    lower = dataclasses.replace(run, plan=dataclasses.replace(run.plan, lr=0.01, epochs=250))
    assert differences(run.to_json(), lower) == "plan.epochs 239 -> 250, plan.lr 0.1 -> 0.01"


SPEED = {"compile": True, "channels_last": False, "micro_groups": 3}
"""Settings that change how a run is computed, not what comes of it."""


def test_how_a_run_is_computed_may_change(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way round, and with others that may not change beside them."""
    monkeypatch.setattr("mgray.check.check_compiler", lambda: None)
    run = Run(name="mine", storage=str(tmp_path), data=DataSection(path=str(videos)))
    fast = dataclasses.replace(run, train=TrainSection(**SPEED))
    for stored, now in ((run, fast), (fast, run)):
        run_folder(run).mkdir(exist_ok=True)
        (run_folder(run) / "run.json").write_text(json.dumps(stored.to_json()))
        check_run(now)
        assert differences(stored.to_json(), now) == "" and stored.digest() == now.digest()
    seeded = dataclasses.replace(run, train=TrainSection(seed=3, **SPEED))
    (run_folder(run) / "run.json").write_text(json.dumps(run.to_json()))
    refused(seeded, "train.seed 0 -> 3)")


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (TrainSection(tf32=False), "train.tf32 True -> False"),
        (TrainSection(precision="bfloat16"), "train.precision float32 -> bfloat16"),
    ],
)
def test_the_precision_of_a_run_may_not_change(videos: Path, tmp_path: Path, train: TrainSection, named: str) -> None:
    run = Run(name="mine", storage=str(tmp_path), data=DataSection(path=str(videos)))
    run_folder(run).mkdir()
    (run_folder(run) / "run.json").write_text(json.dumps(run.to_json()))
    refused(dataclasses.replace(run, train=train), named)


def test_every_setting_of_training_is_in_the_digest_or_known_not_to_matter() -> None:
    """So that a new one is put on one side on purpose."""
    run, other = (
        Run(),
        {
            "seed": 1,
            "optimizer": "adamw",
            "nesterov": False,
            "betas": (0.8, 0.9),
            "precision": "bfloat16",
            "tf32": False,
        },
    )
    other |= {"randaugment": 9, "evals": 3, "eval_batch": 5, "precise_bn": 2} | SPEED
    alike = set()
    for field in dataclasses.fields(TrainSection):
        train = TrainSection(**{field.name: other.get(field.name, 0.5)})  # type: ignore[arg-type]
        assert getattr(train, field.name) != getattr(run.train, field.name)
        if dataclasses.replace(run, train=train).digest() == run.digest():
            alike.add(field.name)
    assert alike == set(SPEED)


def test_runs_from_before_go_on() -> None:
    """The digest of a run at these settings as it was before they were left out."""
    assert (
        Run(data=DataSection(path="a")).digest() == "06c9f1ab69970df8a67e1361888c0e20486a5a83ea82dd0d431b064e3c1a9ab0"
    )


def test_which_paths_are_shards(videos: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=1)
    assert is_shards(str(tmp_path / "set")) and is_shards("s3://bucket/data")
    assert not is_shards(str(videos)) and not is_shards("/missing")
