"""Accuracy, average precision, confusion and the table of predictions, against small cases done by hand."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mgray.errors import ConfigError
from mgray.train.scores import confusion, figures_of, write_predictions
from mgray.train.views import VideoScores

CLASSES = ("cat", "dog", "owl")
FOUND = VideoScores(
    samples_V=np.arange(5),
    labels_V=np.array([0, 0, 0, 1, 1]),
    scores_VC=np.array(
        [[0.90, 0.05, 0.05], [0.30, 0.60, 0.10], [0.50, 0.30, 0.20], [0.40, 0.55, 0.05], [0.70, 0.10, 0.20]]
    ),
)  # fmt: skip
CAT_AP = (1 / 1 + 2 / 3 + 3 / 5) / 3
"""By score: videos 0 (cat), 4, 2 (cat), 3, 1 (cat)."""
DOG_AP = (1 / 2 + 2 / 4) / 2
"""By score: videos 1, 3 (dog), 2, 4 (dog), 0."""


def test_figures_of_a_case_done_by_hand() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures_of(FOUND, CLASSES)
    assert (found.top1, found.top5) == (pytest.approx(3 / 5), 1.0)
    assert found.mean_average_precision == pytest.approx((CAT_AP + DOG_AP) / 2)
    assert found.loss == pytest.approx(-np.mean(np.log([0.9, 0.3, 0.5, 0.55, 0.1])))
    assert [score.name for score in found.classes] == ["dog", "cat", "owl"]
    dog, cat, owl = found.classes
    assert (dog.support, dog.accuracy, dog.average_precision) == (2, 0.5, pytest.approx(DOG_AP))
    assert (cat.support, cat.accuracy, cat.average_precision) == (3, pytest.approx(2 / 3), pytest.approx(CAT_AP))
    assert owl.support == 0 and math.isnan(owl.accuracy) and math.isnan(owl.average_precision)


def test_figures_are_json() -> None:
    tree = json.loads(json.dumps(figures_of(FOUND, CLASSES).to_json(), allow_nan=False))
    assert list(tree) == ["top1", "top5", "map", "loss", "classes"]
    assert tree["classes"][2] == {"class": "owl", "support": 0, "accuracy": None, "average_precision": None}


def test_top5_leaves_classes_out_where_there_are_more() -> None:
    scores_VC = np.tile(np.arange(7.0)[::-1] / 21, (7, 1))
    found = VideoScores(samples_V=np.arange(7), labels_V=np.arange(7), scores_VC=scores_VC)
    figures = figures_of(found, [str(i) for i in range(7)])
    assert (figures.top1, figures.top5) == (pytest.approx(1 / 7), pytest.approx(5 / 7))
    assert math.isfinite(figures.loss)  # the last class has a score of 0


def test_confusion_counts_videos() -> None:
    assert confusion(FOUND, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_predictions_are_a_table(tmp_path: Path) -> None:
    out = tmp_path / "new" / "p.parquet"
    paths = [f"{i}.mp4" for i in range(5)]
    write_predictions(FOUND, paths, CLASSES, out)
    rows = pq.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == paths
    assert [row["label"] for row in rows] == ["cat", "cat", "cat", "dog", "dog"]
    assert [row["predicted"] for row in rows] == ["cat", "dog", "cat", "dog", "cat"]
    assert rows[4]["top_classes"] == ["cat", "owl", "dog"] and rows[4]["top_scores"] == [0.7, 0.2, 0.1]
    assert {row["broken"] for row in rows} == {None}
    write_predictions(FOUND, paths, CLASSES, out, [("5.mp4", "is noise")])
    *scored, left_out = pq.read_table(out).to_pylist()
    assert scored == rows and {name: value for name, value in left_out.items() if value is not None} == {
        "path": "5.mp4",
        "broken": "is noise",
    }
    with pytest.raises(ConfigError, match="predictions = "):
        write_predictions(FOUND, paths, CLASSES, tmp_path)
