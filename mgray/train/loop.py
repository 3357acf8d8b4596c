"""The training loop: a function of the run's configuration and its data, whoever its workers are.

Every few steps the ranks sum their losses; with that collective rank 0 also says what all are to do next (`Signal`), so that a new
schedule, a checkpoint or an end is taken up by all ranks before the same step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mgray.config import Run
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, ClipSource, TrainSource
from mgray.errors import TrainingError
from mgray.ledger import LedgerWriter
from mgray.model import build_model
from mgray.model.dropout import convert_dropout
from mgray.model.norm import defer_running_stats
from mgray.model.upload import uploaded
from mgray.plan import ClipShape, Plan, Step, eval_steps, progress_at, sample_at
from mgray.plan.adaptive import is_due, is_flat, is_open
from mgray.plan.state import Amendment, Departure, ScheduleState, segments_of
from mgray.train.average import WeightAverage
from mgray.train.checkpoint import (
    CheckpointMeta,
    read_tensors,
    schedule_so_far,
    snapshot_of,
    write_checkpoint,
    write_schedule,
)
from mgray.train.clips import clip_checksum, clip_keys
from mgray.train.compile import COMPILED, channels_last, keep_graphs
from mgray.train.evaluate import Note, evaluate, precise_bn, validation_source
from mgray.train.initial import load_initial
from mgray.train.load import LoadSampler
from mgray.train.lookout import Lookout, NoticeGiven, Signal
from mgray.train.memory import MICRO_BATCHES, GroupsAtOnce, memory_key
from mgray.train.metrics import MetricsWriter, losses_of, quarantined
from mgray.train.optimizer import build_optimizer
from mgray.train.quarantine import Finding, Quarantine, Split
from mgray.train.resume import agreed_checkpoint, check_checkpoint
from mgray.train.session import Session
from mgray.train.step import Worker
from mgray.train.track import open_sender

FLUSH_STEPS, FLUSH_S = 8, 1.0
"""Steps whose losses are summed over the ranks in one collective; fewer where they take longer than so many seconds."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that was computed, whose sums are not yet those of all ranks."""

    step: Step
    sums: Tensor
    """Of losses, right answers, clip checksums and faults, float64 [4]."""
    step_s: float
    wait_s: float
    train_s: float


@dataclass(frozen=True, slots=True)
class _Known:
    """What had been amended before some step, and what came of it."""

    schedule: ScheduleState
    plan: Plan
    evals: frozenset[int]
    """Steps after which to validate."""


class Loop:
    """Trains a run on one rank, from its newest checkpoint to its end."""

    def __init__(self, run: Run, session: Session, shards: ShardSet, folder: Path, attempt: int) -> None:
        self.run, self.session, self.shards = run, session, shards
        self.base = Plan.compile(run.plan, shards.num_samples("train"))
        self.schedule = ScheduleState(self.base.digest())
        self.plan = self.base
        self._known = self._known_by(self.schedule)
        self.folder = folder
        torch.manual_seed(run.train.seed)
        model = convert_dropout(build_model(run.model, len(shards.classes)))
        defer_running_stats(model)
        if run.train.precision == "float64":
            model = model.double()
        if run.train.channels_last:
            model = channels_last(model)
        if run.train.compile:
            keep_graphs(folder.parent / COMPILED)
        memory = GroupsAtOnce(folder / MICRO_BATCHES, memory_key(run, session.device, session.world_size))
        base = ClipShape(run.plan.frames, run.plan.crop, run.plan.crop)
        self.worker = Worker(session.prepare(model), session, run.data, run.train, memory, base)
        self.optimizer = build_optimizer(self.worker.module, run.train)
        self.average = WeightAverage(self.worker.module, run.train.ema, run.plan.batch) if run.train.ema else None
        self.step = 0
        self.attempt = attempt
        self._train_s = 0.0
        self._saved: tuple[int, ScheduleState | None, bool] = (0, None, False)
        """Steps done when it was saved last, the schedule then, and whether that was validated."""
        self._saved_at = time.monotonic()
        self._lookout = Lookout(session, run.scale.save_s)
        self._saves: set[int] = set()
        """Steps before which to save, as asked for."""
        self._departures: dict[int, Departure] = {}
        self._flush_steps = 1
        self._version = 0
        """Of the schedule that `plan` is of."""
        self._validated = -1
        self._losses: list[float] = []
        """Of the steps of this phase, where cycles are adaptive."""
        self._done: list[_Done] = []
        self._initial = ""
        self._shown: dict[str, Any] = {}
        self._chain = 0
        self._load()
        self._records = self._open_records() if session.rank == 0 else None
        self._ledger = LedgerWriter(folder, attempt, self.step, self._chain) if session.rank == 0 else None
        known = quarantined(folder) if session.rank == 0 else {}
        self._quarantine = Quarantine(session, shards, run.data.max_broken, known)

    def _open_records(self) -> MetricsWriter:
        load, sender = LoadSampler(self.session.device), open_sender(self.run, self.folder)
        return MetricsWriter(self.folder, self.attempt, load=load, sender=sender)

    def train(self) -> str:
        """Train to the end of the schedule; returns "" there, or why the attempt ends before it: stop, resize, or notice.

        Raises:
            TrainingError: a loss is not finite.
            DataError: too many videos are broken, or the storage does not answer.
        """
        self.worker.module.train()
        self._event("resume" if self.step else "start", f"{self.session.world_size} workers on {self.session.device}")
        if self._initial:
            self._event("init", self._initial)
        self._take_orders()
        if self.run.plan.batch_policy == "per_worker" and not self.schedule.is_for(self.session.world_size, self.step):
            self.schedule = self.schedule.amended(Amendment("workers", self.step, self.session.world_size))
            self._take_orders()
        if 0 < self.step < self.plan.num_steps and self.step in self._known_before().evals:
            self._validate()  # unless it was before it was saved
        while self.step < self._end():
            segments = segments_of(self.plan, self.step, self.plan.num_steps)
            with self.session.feed.blocks(self.source(), segments) as blocks:
                self._steps(blocks)
        if self.step >= self.plan.num_steps:
            self._validate()  # unless it was: stopped early
        departure = self._departures[self.step] if self._is_leaving() else None
        if departure is not None:
            self._save(wait=True)
            self.session.leave(departure)
            self._event("leave", f"{departure.why}: {' '.join(departure.nodes)}" if departure.nodes else departure.why)
        else:
            self._save(wait=True)
            stopped = any(amendment.kind == "stop" for amendment in self.schedule.amendments)
            self._event("finish", "stopped early by an amendment" if stopped else "")
        self.session.finish_saving()
        if self._records is not None:
            self._records.close()
        if self._ledger is not None:
            self._ledger.close()
        return "" if departure is None else departure.why

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
            data.jitter,
        )

    def _end(self) -> int:
        """The step before which this attempt ends, as far as is known."""
        return min([self.plan.num_steps, *self._departures])

    def _is_leaving(self) -> bool:
        """Whether this attempt ends before the next step, or before the validation at the end of the schedule."""
        departure = self._departures.get(self.step)
        if departure is None or self.step < self.plan.num_steps:
            return departure is not None
        return departure.why == "notice" and self._validated != self.step

    def _steps(self, blocks: Iterator[Block | None]) -> None:
        """Train on blocks until the attempt ends or they are no longer those of the schedule."""
        schedule, phase = self.schedule, -1
        # waiting for the first block is start-up, not training
        blocks = itertools.chain([next(blocks)], blocks)
        started = time.perf_counter()
        while self.step < self._end() and self.schedule == schedule:
            step = self.plan.step_at(self.step)
            if step.phase != phase:
                entered = time.perf_counter()
                phase = self._enter(step)
                started += time.perf_counter() - entered  # nor is compiling, see the event
            block = next(blocks)
            waited = time.perf_counter() - started
            sums = self._train_on(step, block)
            self.step += 1
            now = time.perf_counter()
            self._train_s += now - started
            self._done.append(_Done(step, sums, now - started, waited, self._train_s))
            known = self._known_before()
            evaluating = self.step in known.evals
            saving = self.step - self._saved[0] >= self.run.scale.save_every or self.step in self._saves
            adapting = is_due(known.plan, self.step) and is_open(self.schedule, self.step)
            ending = adapting or self.step == self._end() or self.plan.phase_of(self.step).index != phase
            signal = Signal(0)
            if evaluating or saving or ending or len(self._done) >= self._flush_steps:
                signal = self._flush()
            if adapting:
                self._adapt()
            if signal & Signal.NEWS or adapting:
                self._take_orders()
                saving = saving or self.step in self._saves
            if signal & Signal.NOTICE and (nodes := self.session.leaving_nodes()):
                self._departures[self.step] = Departure(self.step, "notice", nodes=nodes)
            if saving or signal & Signal.SAVE:
                self._save(wait=self._is_leaving())
            if evaluating:
                self._validate()
            started = time.perf_counter() if evaluating or saving or signal else now

    def _adapt(self) -> None:
        """End the phase before this step if its loss is flat; rank 0 decides, all learn it from the driver."""
        plan = self._known_before().plan
        phase = plan.phase_of(self.step)
        losses = self._losses[-(self.step - phase.first_step) :]
        uniform = 0.0 if self.shards.multi_label else math.log(len(self.shards.classes))
        if self.session.rank == 0 and is_flat(plan, phase, losses, uniform):
            self.schedule = self.schedule.amended(Amendment("advance", self.step, 1.0))

    def _known_before(self) -> _Known:
        """What is validated or ended before the next step goes by this, so that it is the same when the step is trained again."""
        schedule = self.schedule.before(self.step)
        if schedule != self._known.schedule:
            self._known = self._known_by(schedule)
        return self._known

    def _known_by(self, schedule: ScheduleState) -> _Known:
        plan = schedule.plan(self.base)
        return _Known(schedule, plan, frozenset(eval_steps(plan, self.run.train.evals)))

    def _take_orders(self) -> None:
        """Ask the driver, all ranks before the same step, and take up what it says."""
        orders = self.session.sync(self.schedule, self.step)
        self._saves.update(orders.saves)
        for departure in orders.departures:  # a driver that was restarted knows of none before
            at = max(departure.step, self.step)
            self._departures[at] = dataclasses.replace(departure, step=at)
        for amendment in orders.state.amendments[self._version :]:
            value = f" {amendment.value:g}" if amendment.value else ""
            self._event("amend", f"{amendment.kind}{value} from step {amendment.from_step}")
        self.schedule, self._version = orders.state, orders.state.version
        self.plan = self.schedule.plan(self.base)
        if self._records is not None and self.schedule.version:
            write_schedule(self.folder, self.schedule, self.plan)

    def _enter(self, step: Step) -> int:
        first = self.plan.phases[step.phase].first_step
        self._losses = []
        if self.plan.spec.adaptive != "off" and step.index > first and self.session.rank == 0:
            self._losses = losses_of(self.folder, range(first, step.index))
        self._event("phase", f"phase {step.phase}: {step.shape}")
        for shape in dict.fromkeys(self.plan.phases[step.phase].batches):
            started = time.perf_counter()
            if self.worker.warm_up(shape, step.bn_groups):
                self._event("warm-up", f"{shape}: {time.perf_counter() - started:.1f} s")
        return step.phase

    def _train_on(self, step: Step, block: Block | None) -> Tensor:
        self._check(block, step)
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        keys = clip_keys(block, self.run.train.seed)
        sums = self.worker.step(block, step.shape, step.bn_groups, keys, self.optimizer)
        if self.average is not None:
            self.average.update(step.shape.clips, step.first_position)
        num_faults = self._quarantine.note("train", step.index, block)
        noted = torch.tensor([0.0 if block is None else clip_checksum(block), num_faults], dtype=sums.dtype)
        return torch.cat([sums, uploaded(noted, sums.device)])

    def _check(self, block: Block | None, step: Step) -> None:
        """A block has to be the planned one: a mix-up would train on the wrong clips without a sign of it."""
        if block is None:
            return
        shape = block.clips_NTHWC.shape[1:4]
        planned = (step.shape.frames, step.shape.height, step.shape.width)
        if block.index != step.index or shape != planned or int(block.positions_N[0]) not in step.positions:
            raise TrainingError(
                "block", f"step {block.index}, {shape}", f"is not that of step {step.index}, {planned}", "report this as a bug of mgray"
            )  # fmt: skip

    def _flush(self) -> Signal:
        """Sum the finished steps' losses over the ranks and record them; the same signal on every rank."""
        sums = torch.stack([done.sums for done in self._done])
        signal, steps = self._lookout.signal(self._saved_at), self._flush_steps_wanted()
        if self.session.world_size > 1:
            words = sums.new_tensor([[signal, steps, 0.0, 0.0]]) if self.session.rank == 0 else sums.new_zeros(1, 4)
            sums = torch.cat([sums, words])
            dist.all_reduce(sums)
            *_, (signal_word, steps_word, *_) = sums.tolist()
            sums, signal, steps = sums[:-1], Signal(int(signal_word)), int(steps_word)
        self._flush_steps = steps
        if sums[:, 3].any():
            findings, fresh = self._quarantine.gather()
            if self._ledger is not None:
                self._ledger.faults((f.step, f.position, f.sample, f.substitute) for f in findings)
            self._set_apart(fresh)
        for done, (loss, right, checksum, num_faults) in zip(self._done, sums.tolist(), strict=True):
            clips = done.step.shape.clips
            if self.plan.spec.adaptive != "off":
                self._losses.append(loss / clips)
            if not math.isfinite(loss):
                raise TrainingError(
                    "loss", loss, f"is not finite at step {done.step.index} (videos {self._videos(done.step)})",
                    "lower plan.lr, lengthen plan.warmup_epochs, or look at these videos",
                )  # fmt: skip
            if self._records is not None:
                self._records.step(
                    done.step, loss=loss / clips, top1=right / clips, checksum=int(checksum), step_s=done.step_s, wait_s=done.wait_s, train_s=done.train_s
                )  # fmt: skip
            if self._ledger is not None:
                self._ledger.append(
                    done.step, version=self.schedule.version, world_size=self.session.world_size, checksum=int(checksum), substituted=int(num_faults)
                )  # fmt: skip
        if self._ledger is not None:
            self._ledger.flush()
        if self._records is not None:
            self._records.flush()
            self._show(sums)
        self._done.clear()
        return signal

    def _flush_steps_wanted(self) -> int:
        """Steps until the next flush, by rank 0's clock: it decides when things are said, never what is trained."""
        mean_s = sum(done.step_s for done in self._done) / len(self._done)
        return max(1, min(FLUSH_STEPS, int(FLUSH_S / max(mean_s, 1e-9))))

    def _set_apart(self, fresh: list[Finding]) -> None:
        """Record videos that are broken, and stop where they are too many."""
        for found in fresh if self._records is not None else ():
            assert self._records is not None
            path = self.shards.path(found.split, found.sample)
            self._records.quarantine(found.step, split=found.split, sample=found.sample, path=path, reason=found.reason)
        if fresh:
            if self._records is not None:
                self._records.flush()
            self._quarantine.check()

    def _show(self, sums: Tensor) -> None:
        last = self._done[-1]
        clips = sum(done.step.shape.clips for done in self._done)
        seconds = sum(done.step_s for done in self._done)
        self._shown |= {
            "step": self.step,
            "num_steps": self.plan.num_steps,
            "num_phases": len(self.plan.phases),
            "done": progress_at(self.plan, self.step).fraction,
            "workers": self.session.world_size,
            "phase": last.step.phase,
            "shape": str(last.step.shape),
            "epoch": last.step.epoch,
            "lr": last.step.lr,
            "loss": float(sums[:, 0].sum()) / clips,
            "clips_per_s": clips / max(seconds, 1e-9),
            "wait_share": sum(done.wait_s for done in self._done) / max(seconds, 1e-9),
            "train_s": self._train_s,
        }
        self.session.show(dict(self._shown), self.schedule, self.step)

    def _validate(self) -> None:
        """Validate after the steps done, unless that was done or workers are leaving: then it is done when they go on."""
        if self._validated == self.step or self._is_leaving():
            return
        started = time.perf_counter()
        if self._records is not None:
            doing = {"doing": f"it validates after step {self.step}"}
            self.session.show(self._shown | doing, self.schedule, self.step)
        try:
            with contextlib.nullcontext() if self.average is None else self.average.in_place():
                if self.run.train.precise_bn:
                    precise_bn(self.worker, self.session, self.run, self.shards, self.step, self._noting("train"))
                source = validation_source(self.run, self.shards)
                found = evaluate(self.worker, self.session, source, self._noting("val"))
        except NoticeGiven as notice:
            self._departures[self.step] = Departure(self.step, "notice", nodes=notice.nodes)
            return
        scores = found.scores
        self._set_apart(self._quarantine.exchange()[1])
        self._validated = self.step
        if self._records is not None:
            epoch = self.plan.step_at(self.step - 1).epoch
            self._records.validation(
                self.step, epoch=epoch, scores=scores, eval_s=time.perf_counter() - started, train_s=self._train_s
            )
            self._records.classes(self.step, found.classes)
            self._records.flush()
            self._shown["score"] = scores["map"] if "map" in scores else scores["top1"]
            self.session.show(dict(self._shown), self.schedule, self.step)

    def _noting(self, split: Split) -> Note:
        """Notes the blocks of a validation, of which every rank has as many, and ends it where a node is given notice meanwhile."""
        numbers = itertools.count(1)

        def note(block: Block | None) -> None:
            self._quarantine.note(split, self.step, block)
            if next(numbers) % FLUSH_STEPS == 0:
                self._lookout.heed()

        return note

    def _save(self, *, wait: bool) -> None:
        """Save what stands after the steps done; without `wait`, writing goes on while training does."""
        validated = self._validated == self.step
        if self._saved == (self.step, self.schedule, validated):
            return
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
            validated=validated,
            ledger="" if self._ledger is None else f"{self._ledger.sync():016x}",
        )
        if self._records is not None:
            self.session.finish_saving()
            snapshot = snapshot_of(self.worker.module, self.optimizer, self.average)

        def write(folder: Path) -> None:
            write_checkpoint(folder, meta, snapshot)

        self.session.save(write, {"step": self.step}, wait=wait)
        self._saved, self._saved_at = (self.step, self.schedule, validated), time.monotonic()
        self._event("checkpoint")

    def _load(self) -> None:
        if self.session.rank == 0:
            self.schedule = schedule_so_far(self.folder, self.base)
        with self.session.load() as folders:
            found = agreed_checkpoint(folders, self.session)
            if found is None:
                if self.run.model.init:
                    self._initial = load_initial(self.worker.module, self.run.model)
                return
            folder, meta = found
            check_checkpoint(meta, self.run, self.shards, folder)
            read_tensors(folder, self.worker.module, self.optimizer, self.average)
        self.schedule = self.schedule.newer(meta.schedule)
        self.step = meta.step
        self._saved = (meta.step, meta.schedule, meta.validated)
        self._validated = meta.step if meta.validated else -1
        self._version = self.schedule.version
        self._chain = int(meta.ledger or "0", 16)
        self._train_s = meta.train_s

    def _event(self, event: str, detail: str = "") -> None:
        if self._records is not None:
            self._records.event(self.step, event, detail)

    def _videos(self, step: Step) -> str:
        samples = [sample_at(position, self.plan.num_samples, self.run.train.seed) for position in step.positions]
        names = [self.shards.path("train", sample) for sample in samples]
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
