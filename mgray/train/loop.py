"""The training loop: a function of the run's configuration and its data, whoever its workers are."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgray.check import differences
from mgray.config import Run
from mgray.data.shard import ShardSet
from mgray.data.source import Block, ClipSource, TrainSource
from mgray.errors import CheckpointError, TrainingError
from mgray.model import build_model
from mgray.model.dropout import convert_dropout
from mgray.model.norm import defer_running_stats
from mgray.plan import Plan, Step, eval_steps, sample_at
from mgray.plan.state import ScheduleState, segments_of
from mgray.train.average import WeightAverage
from mgray.train.checkpoint import CheckpointMeta, newest_whole, read_tensors, write_checkpoint
from mgray.train.evaluate import evaluate, precise_bn, validation_source
from mgray.train.initial import load_initial
from mgray.train.metrics import MetricsWriter
from mgray.train.optimizer import build_optimizer
from mgray.train.session import Session
from mgray.train.step import Worker

_KEY_OF_SEED = 0x9E3779B97F4A7C15
"""Odd, so that no two seeds of 64 bits have the same key."""
FLUSH_STEPS = 8
"""Steps whose losses are summed over the ranks in one collective."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that was computed, whose sums are not yet those of all ranks."""

    step: Step
    sums: Tensor
    """Of losses, right answers and clip checksums, float64 [3]."""
    step_s: float
    wait_s: float
    train_s: float


def channels_last(model: nn.Module) -> nn.Module:
    """Lay a model's weights out channels last, in place."""
    model = model.to(memory_format=torch.channels_last_3d)
    for weight in model.parameters():
        if weight.dim() == 5 and weight.shape[2:].numel() == 1:
            # 1x1x1 kernels have either layout; DDP wants the strides that their gradients get
            weight.data = weight.data.contiguous()
    return model


class Loop:
    """Trains a run on one rank, from its newest checkpoint to its end."""

    def __init__(self, run: Run, session: Session, shards: ShardSet, folder: Path, attempt: int) -> None:
        self.run, self.session, self.shards = run, session, shards
        self.plan = Plan.compile(run.plan, shards.num_samples("train"))
        self.schedule = ScheduleState(self.plan.digest())
        torch.manual_seed(run.train.seed)
        model = convert_dropout(build_model(run.model, len(shards.classes)))
        defer_running_stats(model)
        if run.train.precision == "float64":
            model = model.double()
        if run.train.channels_last:
            model = channels_last(model)
        self.worker = Worker(session.prepare(model), session, run.data, run.train)
        self.optimizer = build_optimizer(self.worker.module, run.train)
        self.average = WeightAverage(self.worker.module, run.train.ema, run.plan.batch) if run.train.ema else None
        self.step = 0
        self.attempt = attempt
        self._train_s = 0.0
        self._saved: tuple[int, ScheduleState | None] = (0, None)
        self._done: list[_Done] = []
        self._initial = ""
        self._load()
        self._records = MetricsWriter(folder, attempt) if session.rank == 0 else None
        self._evals = frozenset(eval_steps(self.plan, run.train.evals))
        self._shown: dict[str, Any] = {}

    def train(self) -> None:
        """Run to the end of the schedule.

        Raises:
            TrainingError: a loss is not finite.
            VideoError: a video cannot be decoded.
        """
        self.worker.module.train()
        self._event("resume" if self.step else "start", f"{self.session.world_size} workers on {self.session.device}")
        if self._initial:
            self._event("init", self._initial)
        self.schedule = self.session.sync(self.schedule, self._boundary())
        end = self.schedule.end_step(self.plan)
        if self.step < end:
            with self.session.feed.blocks(self.source(), segments_of(self.plan, self.step, end)) as blocks:
                self._steps(blocks)
            if self.step not in self._evals:  # stopped early
                self._validate()
        if self._saved != (self.step, self.schedule):
            self._save()
        self._event("finish", "" if self.step == self.plan.num_steps else "stopped early by an amendment")
        if self._records is not None:
            self._records.close()

    def source(self) -> ClipSource:
        """Where the clips of the steps come from."""
        data = self.run.data
        return TrainSource(
            self.shards,
            self.plan,
            self.run.train.seed,
            data.fps,
            data.flip,
            self.schedule.version,
            data.enlarge,
            data.sampling,
        )

    def _steps(self, blocks: Iterator[Block | None]) -> None:
        phase = self._enter(self.plan.step_at(self.step))
        # waiting for the first block is start-up, not training
        blocks = itertools.chain([next(blocks)], blocks)
        started = time.perf_counter()
        while self.step < self.schedule.end_step(self.plan):
            step = self.plan.step_at(self.step)
            if step.phase != phase:
                self._flush()
                self.schedule = self.session.sync(self.schedule, self._boundary())
                if self.step < self.schedule.end_step(self.plan):
                    phase = self._enter(step)
                continue
            block = next(blocks)
            waited = time.perf_counter() - started
            sums = self._train_on(step, block)
            self.step += 1
            now = time.perf_counter()
            self._train_s += now - started
            self._done.append(_Done(step, sums, now - started, waited, self._train_s))
            evaluating = self.step in self._evals
            saving = self.step - self._saved[0] >= self.run.scale.save_every
            if evaluating or saving or len(self._done) >= FLUSH_STEPS:
                self._flush()
            if evaluating:
                self._validate()
            if saving:
                self._save()
            started = time.perf_counter() if evaluating or saving else now
        self._flush()

    def _enter(self, step: Step) -> int:
        self._event("phase", f"phase {step.phase}: {step.shape}")
        return step.phase

    def _train_on(self, step: Step, block: Block | None) -> Tensor:
        self._check(block, step)
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        keys = _clip_keys(block, self.run.train.seed)
        sums = self.worker.step(block, step.shape, step.bn_groups, keys, self.optimizer)
        if self.average is not None:
            self.average.update(step.shape.clips, step.first_position)
        return torch.cat([sums, sums.new_tensor([0.0 if block is None else clip_checksum(block)])])

    def _check(self, block: Block | None, step: Step) -> None:
        """A block has to be the planned one: a mix-up would train on the wrong clips without a sign of it."""
        if block is None:
            return
        shape = block.clips_NTHWC.shape[1:4]
        planned = (step.shape.frames, step.shape.height, step.shape.width)
        if block.index != step.index or shape != planned or block.positions_N[0] not in step.positions:
            raise TrainingError(
                "block", f"step {block.index}, {shape}", f"is not that of step {step.index}, {planned}", "report this as a bug of mgray"
            )  # fmt: skip

    def _flush(self) -> None:
        """Sum the finished steps' losses over the ranks and record them."""
        if not self._done:
            return
        sums = torch.stack([done.sums for done in self._done])
        if self.session.world_size > 1:
            dist.all_reduce(sums)
        for done, (loss, right, checksum) in zip(self._done, sums.tolist(), strict=True):
            clips = done.step.shape.clips
            if not math.isfinite(loss):
                raise TrainingError(
                    "loss", loss, f"is not finite at step {done.step.index} (videos {self._videos(done.step)})",
                    "lower plan.lr, lengthen plan.warmup_epochs, or look at these videos",
                )  # fmt: skip
            if self._records is not None:
                self._records.step(
                    done.step, loss=loss / clips, top1=right / clips, checksum=int(checksum), step_s=done.step_s, wait_s=done.wait_s, train_s=done.train_s
                )  # fmt: skip
        if self._records is not None:
            self._records.flush()
            self._show(sums)
        self._done.clear()

    def _show(self, sums: Tensor) -> None:
        last = self._done[-1]
        clips = sum(done.step.shape.clips for done in self._done)
        seconds = sum(done.step_s for done in self._done)
        self._shown |= {
            "step": self.step,
            "phase": last.step.phase,
            "shape": str(last.step.shape),
            "epoch": last.step.epoch,
            "lr": last.step.lr,
            "loss": float(sums[:, 0].sum()) / clips,
            "clips_per_s": clips / max(seconds, 1e-9),
            "wait_share": sum(done.wait_s for done in self._done) / max(seconds, 1e-9),
            "train_s": self._train_s,
        }
        self.session.show(dict(self._shown), self.schedule, self._boundary())

    def _validate(self) -> None:
        started = time.perf_counter()
        with contextlib.nullcontext() if self.average is None else self.average.in_place():
            if self.run.train.precise_bn:
                precise_bn(self.worker, self.session, self.run, self.shards, self.step)
            scores = evaluate(self.worker, self.session, validation_source(self.run, self.shards))
        if self._records is not None:
            epoch = self.plan.step_at(self.step - 1).epoch
            self._records.validation(
                self.step, epoch=epoch, scores=scores, eval_s=time.perf_counter() - started, train_s=self._train_s
            )
            self._records.flush()
            self._shown["score"] = scores["map"] if "map" in scores else scores["top1"]
            self.session.show(dict(self._shown), self.schedule, self._boundary())

    def _save(self) -> None:
        meta = CheckpointMeta(
            step=self.step,
            run_digest=self.run.digest(),
            data_digest=self.shards.digest(),
            schedule=self.schedule,
            classes=self.shards.classes,
            run=self.run.to_json(),
            train_s=self._train_s,
            attempt=self.attempt,
            multi_label=self.shards.multi_label,
        )

        def write(folder: Path) -> None:
            write_checkpoint(folder, meta, self.worker.module, self.optimizer, self.average)

        self.session.save(write, {"step": self.step})
        self._saved = (self.step, self.schedule)
        self._event("checkpoint")

    def _load(self) -> None:
        with self.session.load() as folders:
            if not folders:
                if self.run.model.init:
                    self._initial = load_initial(self.worker.module, self.run.model)
                return
            folder, meta = newest_whole(folders)
            check_checkpoint(meta, self.run, self.shards, folder)
            read_tensors(folder, self.worker.module, self.optimizer, self.average)
        self.schedule = self.schedule.newer(meta.schedule)
        self.step = meta.step
        self._saved = (meta.step, meta.schedule)
        self._train_s = meta.train_s

    def _boundary(self) -> int:
        """The first step of the phase after the one that this step is in."""
        if self.step >= self.plan.num_steps:
            return self.plan.num_steps
        phase = self.plan.phases[self.plan.step_at(self.step).phase]
        return phase.first_step + phase.num_steps

    def _event(self, event: str, detail: str = "") -> None:
        if self._records is not None:
            self._records.event(self.step, event, detail)

    def _videos(self, step: Step) -> str:
        samples = [sample_at(position, self.plan.num_samples, self.run.train.seed) for position in step.positions]
        names = [self.shards.path("train", sample) for sample in samples]
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_checkpoint(meta: CheckpointMeta, run: Run, shards: ShardSet, folder: Path) -> None:
    """Refuse a checkpoint that another run or other data made.

    Raises:
        CheckpointError: it names what differs.
    """
    if meta.run_digest != run.digest():
        raise CheckpointError(
            "checkpoint", str(folder), f"is of another plan or model ({differences(meta.run, run)})",
            "give the run another --name, or the settings it was started with",
        )  # fmt: skip
    if meta.data_digest != shards.digest():
        raise CheckpointError(
            "checkpoint", str(folder), f"was trained on other data than {run.data.path}", "give --data.path of its shards, or another --name"
        )  # fmt: skip


def clip_checksum(block: Block) -> int:
    """A sum over clips of 30 bits of each (position, sample) pair: the same whatever the order, exact in a float64."""
    word = block.positions_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + block.samples_N.astype(np.uint64)
    word = (word ^ (word >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return int((word >> np.uint64(34)).sum())


def _clip_keys(block: Block | None, seed: int) -> Tensor:
    """A key for each clip, from the seed and its position in the sample stream."""
    if block is None:
        return torch.zeros(0, dtype=torch.int64)
    seed_bits = np.uint64((seed * _KEY_OF_SEED) % (1 << 64))
    return torch.from_numpy((block.positions_N.astype(np.uint64) ^ seed_bits).view(np.int64))
