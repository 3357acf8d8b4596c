"""Figures of scored videos: accuracy, average precision, confusion, and predictions as a table.

Shape suffixes: V videos, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

from mgray.errors import ConfigError
from mgray.train.views import VideoScores

TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """How well one class is recognised; NaN where no video is of it."""

    name: str
    support: int
    """Videos of it."""
    accuracy: float
    """Share of them whose highest score is this class's."""
    average_precision: float
    """Of its score, this class against all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Figures over a validation split, each 0 to 1 but for the loss."""

    top1: float
    top5: float
    """Over all classes where there are fewer than five."""
    mean_average_precision: float
    """Mean of the classes' average precision, over those that a video is of."""
    loss: float
    """Mean negative logarithm of the right class's score."""
    classes: tuple[ClassScore, ...]
    """The worst first (accuracy, then average precision), those without a video last."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is null."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "map": self.mean_average_precision,
            "loss": self.loss,
            "classes": [
                {"class": score.name, "support": score.support, "accuracy": _number(score.accuracy),
                 "average_precision": _number(score.average_precision)}
                for score in self.classes
            ],
        }  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def figures_of(found: VideoScores, classes: Sequence[str]) -> Figures:
    """The figures of scored videos; there is at least one."""
    scores_VC, labels_V = torch.from_numpy(found.scores_VC), torch.from_numpy(found.labels_V)
    count = len(classes)
    with warnings.catch_warnings():  # torchmetrics warns of classes without a video, whose value is not used
        warnings.simplefilter("ignore", UserWarning)
        precision_C = multiclass_average_precision(scores_VC, labels_V, count, average="none").numpy()
    confusion_CC = confusion(found, count)
    support_C = confusion_CC.sum(1)
    seen_C = support_C > 0
    accuracy_C = np.where(seen_C, confusion_CC.diagonal() / np.maximum(support_C, 1), np.nan)
    precision_C = np.where(seen_C, precision_C, np.nan)
    order = np.lexsort((precision_C, accuracy_C))  # NaN is sorted last
    right_V = scores_VC.gather(1, labels_V[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    total = len(found.labels_V)
    top1, top5 = (
        round(total * float(multiclass_accuracy(scores_VC, labels_V, count, average="micro", top_k=min(k, count))))
        / total
        for k in (1, TOP)
    )  # torchmetrics answers in float32
    return Figures(
        top1=top1,
        top5=top5,
        mean_average_precision=float(np.nanmean(precision_C)),
        loss=float(-right_V.log().mean()),
        classes=tuple(
            ClassScore(
                name=classes[i], support=int(support_C[i]), accuracy=float(accuracy_C[i]), average_precision=float(precision_C[i])
            )
            for i in order
        ),
    )  # fmt: skip


def confusion(found: VideoScores, num_classes: int) -> npt.NDArray[np.int64]:
    """Videos by class (rows) and predicted class (columns), [C, C]."""
    cells = found.labels_V * num_classes + found.scores_VC.argmax(1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def write_predictions(found: VideoScores, paths: Sequence[str], classes: Sequence[str], out: Path) -> None:
    """Write a Parquet file: path, label, predicted, top_classes and top_scores (the five highest), a row for each video.

    Raises:
        ConfigError: the file cannot be written.
    """
    top_VK = np.argsort(-found.scores_VC, axis=1, kind="stable")[:, :TOP]
    names = np.array(classes, object)
    table = pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "label": pa.array(names[found.labels_V], pa.string()),
            "predicted": pa.array(names[top_VK[:, 0]], pa.string()),
            "top_classes": pa.array(names[top_VK].tolist(), pa.list_(pa.string())),
            "top_scores": pa.array(
                np.take_along_axis(found.scores_VC, top_VK, axis=1).tolist(), pa.list_(pa.float64())
            ),
        }
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out)
    except OSError as error:
        raise ConfigError(
            "predictions", str(out), f"cannot be written ({error.strerror or error})", "name another file"
        ) from None
