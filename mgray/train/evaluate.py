"""Validation at the base shape: one centred clip a video, every video exactly once whatever the number of workers."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mgray.config import Run
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, TrainSource, ValSource
from mgray.model.norm import grouped_norms
from mgray.plan import ClipShape, Plan
from mgray.train.scores import average_precisions
from mgray.train.session import Session
from mgray.train.step import Worker

T = TypeVar("T")
Note = Callable[[Block | None], object]
"""Is shown each block of this rank."""


def validation_source(run: Run, shards: ShardSet) -> ValSource:
    """The validation clips of a run: base shape, base stride, the short side that training's jitter starts at."""
    plan = run.plan
    return ValSource(
        shards=shards,
        shape=ClipShape(plan.frames, plan.crop, plan.crop),
        stride=plan.stride,
        short_side=plan.jitter_min,
        fps=run.data.fps,
        batch=run.train.eval_batch,
        sampling=run.data.sampling,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What a validation found, the same on every rank."""

    scores: dict[str, float]
    """top1, top5, loss and num_clips; map, loss and num_clips where videos have several classes."""
    classes: dict[str, Any]
    """Plain values. confusion: rows of (class, predicted class, videos), none of 0 videos; or, where videos have several classes,
    support and average_precision of each class (null where no video is of it)."""


def evaluate(worker: Worker, session: Session, source: ValSource, note: Note = lambda block: None) -> Validation:
    """Scores over the whole validation split, the same on every rank.

    Top-5 is over all classes where there are fewer than five. Videos that are broken are left out; `note` is shown each block.
    """
    if source.shards.multi_label:
        return _evaluate_multi_label(worker, session, source, note)
    # with matplotlib and more a second or so, which a worker's first step need not wait for
    from torchmetrics import MeanMetric, MetricCollection, SumMetric
    from torchmetrics.classification import MulticlassAccuracy

    classes = source.shards.classes
    scores = MetricCollection(
        {
            "top1": MulticlassAccuracy(len(classes), top_k=1, average="micro"),
            "top5": MulticlassAccuracy(len(classes), top_k=min(5, len(classes)), average="micro"),
        }
    ).to(session.device)
    losses, num_clips = MeanMetric().to(session.device), SumMetric().to(session.device)
    cells = [np.zeros(0, np.int64)]
    with contextlib.closing(_predicted(worker, session, source, note)) as batches:
        for block, logits in batches:
            labels = torch.from_numpy(block.labels_N.copy()).to(session.device)
            scores.update(logits, labels)
            losses.update(F.cross_entropy(logits, labels, reduction="none"))
            num_clips.update(len(labels))
            cells.append(block.labels_N.astype(np.int64) * len(classes) + logits.argmax(1).cpu().numpy())
    results = {name: float(value) for name, value in scores.compute().items()}
    pairs, counts = np.unique(np.concatenate(of_all_ranks(np.concatenate(cells), session)), return_counts=True)
    rows = [[*divmod(pair, len(classes)), count] for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]
    return Validation(
        scores={**results, "loss": float(losses.compute()), "num_clips": int(num_clips.compute())},
        classes={"confusion": rows},
    )


def _predicted(
    worker: Worker, session: Session, source: ValSource, note: Note
) -> Generator[tuple[Block, Tensor], None, None]:
    """This rank's blocks that hold a video, each with its logits; the model is set to predict, and no gradients are kept, until they end."""
    worker.module.eval()
    with (
        torch.inference_mode(),
        session.feed.blocks(source, [range(source.num_batches(session.world_size))]) as blocks,
    ):
        for block in blocks:
            note(block)
            if block is not None and len(block.labels_N):
                yield block, worker.predict(block)
    worker.module.train()


def of_all_ranks(own: T, session: Session) -> list[T]:
    """What each rank has, in the order of the ranks."""
    whole = [own] * session.world_size
    if session.world_size > 1:
        dist.all_gather_object(whole, own)
    return whole


def _evaluate_multi_label(worker: Worker, session: Session, source: ValSource, note: Note) -> Validation:
    scores, labels = [torch.zeros(0, len(source.shards.classes))], [torch.zeros(0, len(source.shards.classes))]
    with contextlib.closing(_predicted(worker, session, source, note)) as batches:
        for block, logits in batches:
            scores.append(logits.float().cpu())
            labels.append(torch.from_numpy(block.labels_N.copy()).float())
    whole = of_all_ranks((torch.cat(scores), torch.cat(labels)), session)
    logits_VK, labels_VK = (torch.cat(parts) for parts in zip(*whole, strict=True))
    precision_K = average_precisions(logits_VK.sigmoid(), labels_VK.long())
    return Validation(
        scores={
            "map": float(precision_K.nanmean().nan_to_num()),
            "loss": float(F.binary_cross_entropy_with_logits(logits_VK.double(), labels_VK.double())),
            "num_clips": len(labels_VK),
        },
        classes={
            "support": labels_VK.sum(0).long().tolist(),
            "average_precision": [None if math.isnan(value) else value for value in precision_K.tolist()],
        },
    )


def precise_bn(
    worker: Worker,
    session: Session,
    run: Run,
    shards: ShardSet,
    steps_done: int,
    note: Note = lambda block: None,
) -> None:
    """Re-estimate running statistics over `train.precise_bn` batches of the base shape (paper, section 3.3).

    The batches are a function of the seed and the number of steps done.
    """
    plan = Plan.compile(run.plan.baseline(), shards.num_samples("train"))
    draw = hashlib.sha256(f"precise-bn {run.train.seed} {steps_done}".encode()).digest()
    source = TrainSource(
        shards,
        plan,
        int.from_bytes(draw[:8]) >> 1,
        run.data.fps,
        run.data.flip,
        enlarge=run.data.enlarge,
        sampling=run.data.sampling,
        jitter=run.data.jitter,
    )
    count = min(run.train.precise_bn, plan.num_steps)
    norms = list(grouped_norms(worker.module))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    with session.feed.blocks(source, [range(count)]) as blocks:
        for index, block in enumerate(blocks):
            step = plan.step_at(index)
            note(block)
            worker.observe(block, step.shape, step.bn_groups)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
