"""Scores of videos from several views each.

Shape suffixes: V videos, K views of a video, C classes, N clips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mgray.config import Run
from mgray.data.source import Block, ValSource
from mgray.errors import ConfigError
from mgray.model import build_model
from mgray.train.checkpoint import CheckpointMeta, read_tensors
from mgray.train.compile import channels_last
from mgray.train.session import LocalSession, Session
from mgray.train.step import Worker

Pool = Literal["mean", "max"]
POOLS: tuple[Pool, ...] = ("mean", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoScores:
    """What a model says of some videos of the validation split."""

    samples_V: npt.NDArray[np.int64]
    """Their indices."""
    labels_V: npt.NDArray[np.int64]
    """A class each; [V, C] of 0 and 1 where videos have several."""
    scores_VC: npt.NDArray[np.float64]
    """Softmax probabilities (a sigmoid's where videos have several classes), pooled over the views (with the maximum they do not sum to 1)."""
    broken: tuple[tuple[int, str], ...] = ()
    """Indices of the videos that have no scores, since they cannot be read or decoded, and why."""

    @staticmethod
    def joined(parts: Sequence[VideoScores], total: int) -> VideoScores:
        """The scores of a whole split in its own order.

        Args:
            parts: in any order; together they hold each of `total` videos exactly once, with scores or among the broken ones.
        """
        samples_V = np.concatenate([part.samples_V for part in parts])
        order = np.argsort(samples_V)
        broken = tuple(sorted(item for part in parts for item in part.broken))
        seen = np.sort(np.append(samples_V, np.array([sample for sample, _ in broken], np.int64)))
        assert np.array_equal(seen, np.arange(total)), "a video was scored twice, or not at all"
        return VideoScores(
            broken=broken,
            samples_V=samples_V[order],
            labels_V=np.concatenate([part.labels_V for part in parts])[order],
            scores_VC=np.concatenate([part.scores_VC for part in parts])[order],
        )


def trained_worker(folder: Path, meta: CheckpointMeta, session: LocalSession) -> Worker:
    """The model of a checkpoint on the session's device, set to predict.

    Raises:
        CheckpointError: the weights are those of another model.
    """
    run = Run.from_json(meta.run)
    model = build_model(run.model, len(meta.classes))
    if run.train.precision == "float64":
        model = model.double()
    if run.train.channels_last:
        model = channels_last(model)
    read_tensors(folder, model)
    worker = Worker(session.prepare(model), session, run.data, run.train)
    worker.module.eval()
    return worker


def score_views(worker: Worker, session: Session, source: ValSource, pool: Pool, at_once: int) -> Iterator[VideoScores]:
    """The scores of each batch that this rank has of the validation split; the model has to be set to predict.

    A video of which a view cannot be decoded is left out, and said to be broken.

    Args:
        at_once: clips that the model computes at once.

    Raises:
        DataError: the storage does not answer.
    """
    batches = range(source.num_batches(session.world_size))
    views = len(source.views)
    with session.feed.blocks(source, [batches]) as blocks:
        for block in blocks:
            if block is None:
                continue
            broken = {fault.sample: fault.reason for fault in reversed(block.faults)}
            if broken:
                block = _without(block, list(broken))
            classes = len(source.shards.classes)
            scores_VC = np.zeros((0, classes))
            if len(block.samples_N):
                log_NC = log_scores(worker, block, at_once, multi_label=source.shards.multi_label)
                scores_VC = pooled(log_NC.view(-1, views, classes), pool).cpu().numpy()
            yield VideoScores(
                samples_V=block.samples_N[::views].copy(),
                labels_V=block.labels_N[::views].copy(),
                scores_VC=scores_VC,
                broken=tuple(sorted(broken.items())),
            )


def _without(block: Block, samples: Sequence[int]) -> Block:
    """A block without the clips of some videos."""
    keep_N = ~np.isin(block.samples_N, samples)
    return dataclasses.replace(
        block, clips_NTHWC=block.clips_NTHWC[keep_N], labels_N=block.labels_N[keep_N], samples_N=block.samples_N[keep_N],
        positions_N=block.positions_N[keep_N],
    )  # fmt: skip


def log_scores(worker: Worker, block: Block, at_once: int, *, multi_label: bool = False) -> Tensor:
    """Log softmax (log sigmoid, where a video has several classes) of a block's clips in float64, [N, C] on the device."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(block.clips_NTHWC), at_once):
            part = dataclasses.replace(block, clips_NTHWC=block.clips_NTHWC[first : first + at_once])
            logits = worker.predict(part).double()
            parts.append(F.logsigmoid(logits) if multi_label else logits.log_softmax(1))
    return torch.cat(parts)


def pooled(log_VKC: Tensor, pool: Pool) -> Tensor:
    """Mean or maximum of the views' scores, [V, C]; `log_VKC` holds their logarithms.

    Raises:
        ConfigError: no such way to pool.
    """
    if pool not in POOLS:
        raise ConfigError("pool", pool, "is no way to pool", f"use {' or '.join(POOLS)}")
    return log_VKC.amax(1).exp() if pool == "max" else (log_VKC.logsumexp(1) - math.log(log_VKC.shape[1])).exp()
