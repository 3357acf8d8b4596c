"""Evaluation on Ray gives the scores of one process, whatever the number of workers, and names what is wrong in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mgray import cli
from mgray.data.clip import Views
from mgray.evaluation.run import Viewing, evaluate_run
from tests.support.checkpoints import write_run
from tests.support.shards import write_shards

pytestmark = pytest.mark.ray


def test_one_and_two_workers_score_as_one_process(ray_instance: None, tmp_path: Path) -> None:
    shards = write_shards(tmp_path, train=1, val=5, classes=3, size=(48, 32))
    run = str(write_run(tmp_path / "run", shards))
    views = Views(clips=2, crops=3)
    alone = evaluate_run(run, Viewing(views=views))
    for workers in (1, 2):
        seen: list[tuple[int, int]] = []
        shared = evaluate_run(run, Viewing(views=views, workers=workers), on_progress=lambda *at, s=seen: s.append(at))
        assert shared.found.samples_V.tolist() == list(range(5)) and seen[-1] == (5, 5)
        np.testing.assert_allclose(shared.found.scores_VC, alone.found.scores_VC, rtol=1e-12)
        assert np.array_equal(shared.found.labels_V, alone.found.labels_V)
        assert shared.figures.loss == pytest.approx(alone.figures.loss, rel=1e-12)
        assert dataclasses.replace(shared.figures, loss=0.0) == dataclasses.replace(alone.figures, loss=0.0)


def test_broken_videos_are_the_same_on_any_number_of_workers(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path, train=1, val=6, classes=2, damaged=(3, 4, 6))
    run = str(write_run(tmp_path / "run", shards))
    refused, reports = set(), []
    for workers in ("0", "1", "3"):
        options = ["--workers", workers, "--views", "2x1"]
        assert cli.main(["eval", run, *options, "--max-broken", "0.2"]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        refused.add(captured.err)
        assert cli.main(["eval", run, *options, "--max-broken", "0.5", "--json"]) == 0
        captured = capsys.readouterr()
        tree = json.loads(captured.out)
        reports.append((captured.err, tree["broken"], tree["num_videos"], round(tree["loss"], 9), tree["top1"]))
    assert len(refused) == 1 and "2 of 6 val videos are broken" in refused.pop()
    assert reports[0] == reports[1] == reports[2]
    assert [item["path"] for item in reports[0][1]] == ["3.mp4", "4.mp4", "6.mp4"] and reports[0][2] == 3


def test_the_command_on_ray(ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_shards(tmp_path, train=1, val=3, classes=2)
    assert cli.main(["eval", str(write_run(tmp_path / "run", shards)), "--workers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_videos"] == 3
