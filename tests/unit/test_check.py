"""Bad input is refused in one line before anything starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mgray.check import check_run, run_folder
from mgray.config import DataSection, ModelSection, Run
from mgray.data.synthetic import write_motion_videos
from mgray.errors import MgrayError


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
    refused(dataclasses.replace(good, storage="s3://bucket/runs"), "storage", "s3://bucket/runs")
    refused(dataclasses.replace(good, model=ModelSection(name="resnet")), "model.name", "resnet", "slowfast")
    refused(dataclasses.replace(good, model=ModelSection(depth=51)), "model.depth", "51")


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
    (run_folder(run) / "run.json").write_text("{}x")
    refused(run, "name = 'mine'")
