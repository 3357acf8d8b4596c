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
import torch.nn.functional as F
from torch import Tensor

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
    """Share of them whose highest score is this class's; NaN where videos have several classes."""
    average_precision: float
    """Of its score, this class against all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Figures over a validation split, each 0 to 1 but for the loss."""

    top1: float | None
    """None where videos have several classes, as top5."""
    top5: float | None
    """Over all classes where there are fewer than five."""
    mean_average_precision: float
    """Mean of the classes' average precision, over those that a video is of."""
    loss: float
    """Mean negative logarithm of the right class's score; of multi-label videos the mean binary cross entropy of all classes."""
    classes: tuple[ClassScore, ...]
    """The worst first (accuracy, then average precision), those without a video last."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is null."""
        return {
            **({"top1": self.top1, "top5": self.top5} if self.top1 is not None else {}),
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
    if found.labels_V.ndim > 1:
        return _multi_label_figures(found, classes)
    # with matplotlib and more a second or so, which the loop, that has this module, need not wait for
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_average_precision

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


def _multi_label_figures(found: VideoScores, classes: Sequence[str]) -> Figures:
    scores_VC, labels_VC = torch.from_numpy(found.scores_VC), torch.from_numpy(found.labels_V)
    precision_C = average_precisions(scores_VC, labels_VC).numpy()
    support_C = found.labels_V.sum(0)
    return Figures(
        top1=None,
        top5=None,
        mean_average_precision=mean_average_precision(scores_VC, labels_VC),
        loss=float(F.binary_cross_entropy(scores_VC, labels_VC.double())),
        classes=tuple(
            ClassScore(
                name=classes[i], support=int(support_C[i]), accuracy=float("nan"), average_precision=float(precision_C[i])
            )
            for i in np.argsort(precision_C, kind="stable")
        ),
    )  # fmt: skip


def average_precisions(scores_VC: Tensor, labels_VC: Tensor) -> Tensor:
    """Average precision of each class of multi-label videos, [C]; NaN where no video shows it."""
    from torchmetrics.functional.classification import multilabel_average_precision

    with warnings.catch_warnings():  # of classes without a video, whose value is not used
        warnings.simplefilter("ignore", UserWarning)
        precision_C = multilabel_average_precision(scores_VC, labels_VC, labels_VC.shape[1], average="none")
    assert isinstance(precision_C, Tensor)
    return torch.where(labels_VC.any(0), precision_C.double(), torch.nan)


def mean_average_precision(scores_VC: Tensor, labels_VC: Tensor) -> float:
    """Mean of the classes' average precision, over those that a video shows (as PySlowFast has it); 0 where none is shown.

    It does not depend on the order of the videos.
    """
    return float(average_precisions(scores_VC, labels_VC).nanmean().nan_to_num())


def confusion(found: VideoScores, num_classes: int) -> npt.NDArray[np.int64]:
    """Videos by class (rows) and predicted class (columns), [C, C]; each video has one class."""
    assert found.labels_V.ndim == 1
    cells = found.labels_V * num_classes + found.scores_VC.argmax(1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def write_predictions(
    found: VideoScores,
    paths: Sequence[str],
    classes: Sequence[str],
    out: Path,
    broken: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a Parquet file: path, label, predicted, top_classes and top_scores (the five highest), a row for each video.

    Multi-label videos have a list, `labels`, in place of `label`. Videos that are `broken` (path and reason) come last, with the reason in a
    column of that name and nothing in the others.

    Raises:
        ConfigError: the file cannot be written.
    """
    top_VK = np.argsort(-found.scores_VC, axis=1, kind="stable")[:, :TOP]
    names = np.array(classes, object)
    table = pa.table(
        {
            "path": pa.array(paths, pa.string()),
            **(
                {"labels": pa.array([names[row > 0].tolist() for row in found.labels_V], pa.list_(pa.string()))}
                if found.labels_V.ndim > 1
                else {"label": pa.array(names[found.labels_V], pa.string())}
            ),
            "predicted": pa.array(names[top_VK[:, 0]], pa.string()),
            "top_classes": pa.array(names[top_VK].tolist(), pa.list_(pa.string())),
            "top_scores": pa.array(
                np.take_along_axis(found.scores_VC, top_VK, axis=1).tolist(), pa.list_(pa.float64())
            ),
            "broken": pa.nulls(len(paths), pa.string()),
        }
    )
    left_out = [{"path": path, "broken": reason} for path, reason in broken]
    table = pa.concat_tables([table, pa.Table.from_pylist(left_out, table.schema)])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out)
    except OSError as error:
        raise ConfigError(
            "predictions", str(out), f"cannot be written ({error.strerror or error})", "name another file"
        ) from None
