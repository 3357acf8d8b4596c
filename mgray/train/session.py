"""Session: what the loop asks of its surroundings. `RaySession` is a Ray Train worker, `LocalSession` one plain process."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgray.config import FeedSection
from mgray.data.feed import Feed
from mgray.data.local_feed import LocalFeed
from mgray.plan.state import Departure, Orders, ScheduleState
from mgray.train.kept import KEEP, PART, Kept, kept_in, late

FEED = "train"
"""Name under which the trainer passes the feed to Ray Train."""


class Session(Protocol):
    """A worker's place among the workers, and its way to the driver and to storage."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def feed(self) -> Feed:
        """Where this worker's blocks come from."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device, wrapped so that gradients are averaged over the workers."""

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        """The process group of some ranks; every rank has to ask for the same groups in the same order."""

    def sync(self, state: ScheduleState, step: int) -> Orders:
        """The newest schedule and what else is asked for, the same on every rank; all of them stand before `step`."""

    def show(self, progress: dict[str, Any], state: ScheduleState, step: int) -> None:
        """Publish how far the run is for those who watch and amend it (rank 0 only, never waits)."""

    def news(self) -> bool:
        """Whether the driver has something that calls for `sync` (rank 0 only, never waits)."""

    def leaving_nodes(self) -> tuple[str, ...]:
        """Nodes of workers that have been given notice, the same on every rank; every rank has to ask."""

    def leave(self, departure: Departure) -> None:
        """Tell the driver that this attempt ends before the schedule does; every rank takes part."""

    def load(self) -> AbstractContextManager[list[Path]]:
        """A context with the folders of the run's checkpoints, the newest first, the same on every rank; every rank has to ask."""

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any], *, wait: bool = True) -> None:
        """Store a checkpoint that `write` puts into a folder (called on rank 0 only, in a thread without `wait`); every rank takes part."""

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            Exception: what kept it from being written.
        """


@dataclass
class RaySession:
    """A worker of Ray Train; `driver` is the handle of the run's `ScheduleDriver`."""

    driver: Any
    folder: Path
    """Of the run's records and checkpoints."""
    _groups: dict[tuple[int, ...], dist.ProcessGroup] = field(default_factory=dict)
    _answer: Any = None
    """The driver's to the last `show`."""
    _saving: Future[None] | None = None
    _earlier: list[Kept] = field(default_factory=list)
    """Checkpoints of earlier attempts, of which Ray knows nothing; the newest first."""
    _num_saves: int = 0

    @property
    def rank(self) -> int:
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        return int(ray.train.get_context().get_world_size())

    @property
    def device(self) -> torch.device:
        return ray.train.torch.get_device()

    @property
    def feed(self) -> Feed:
        return cast(Feed, ray.train.get_dataset_shard(FEED))

    def prepare(self, model: nn.Module) -> nn.Module:
        # the loop itself makes running statistics equal, so DDP broadcasts no buffers at each step
        known = inspect.signature(DistributedDataParallel).parameters
        no_broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options = {no_broadcast: False, "gradient_as_bucket_view": True}
        return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=options)

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        if ranks not in self._groups:
            self._groups[ranks] = cast(dist.ProcessGroup, dist.new_group(list(ranks)))
        return self._groups[ranks]

    def sync(self, state: ScheduleState, step: int) -> Orders:
        newest = [ray.get(self.driver.sync.remote(state, step)) if self.rank == 0 else None]
        if self.world_size > 1:
            dist.broadcast_object_list(newest, src=0, device=self.device)
        self._answer = None
        return cast(Orders, newest[0])

    def show(self, progress: dict[str, Any], state: ScheduleState, step: int) -> None:
        self._answer = self.driver.show.remote(progress, state, step)

    def news(self) -> bool:
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        return bool(ray.get(self._answer))

    def leaving_nodes(self) -> tuple[str, ...]:
        info = ray.train.get_preemption_info()
        return () if info is None else tuple(info.preempted_node_ids)

    def leave(self, departure: Departure) -> None:
        if self.rank == 0:
            ray.get(self.driver.leave.remote(departure))
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def load(self) -> Iterator[list[Path]]:
        # rank 0's list: elsewhere a shared file system may not show the newest one yet
        found = [kept_in(self.folder) if self.rank == 0 else []]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0, device=self.device)
        (self._earlier,) = found
        yield [item.path for item in self._earlier]

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any], *, wait: bool = True) -> None:
        if self.rank != 0:
            ray.train.report(metrics)
            return
        saving: Future[None] = Future()
        self._num_saves += 1
        no_longer_kept = late(self._earlier, max(0, KEEP - self._num_saves))

        def put(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                write_whole(self.folder / name, write)
            except BaseException as error:
                saving.set_exception(error)
                raise
            saving.set_result(None)
            for old in no_longer_kept:
                shutil.rmtree(old, ignore_errors=True)
            return ray.train.Checkpoint.from_directory(self.folder / name)

        self._saving = saving
        mode = CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC
        placeholder = ray.train.Checkpoint.from_directory(self.folder)
        ray.train.report(
            metrics,
            checkpoint=placeholder,
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=put,
            delete_local_checkpoint_after_upload=False,
        )

    def finish_saving(self) -> None:
        if self._saving is not None:
            self._saving.result()


@dataclass
class LocalSession:
    """One process without Ray; checkpoints are folders beneath `folder`."""

    folder: Path
    section: FeedSection = field(default_factory=FeedSection)
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keep: int = KEEP

    @property
    def feed(self) -> Feed:
        return LocalFeed(self.section, self.rank, self.world_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        raise RuntimeError("one process needs no process group")

    def sync(self, state: ScheduleState, step: int) -> Orders:
        return Orders(state)

    def show(self, progress: dict[str, Any], state: ScheduleState, step: int) -> None:
        """Nobody watches."""

    def news(self) -> bool:
        return False

    def leaving_nodes(self) -> tuple[str, ...]:
        return ()

    def leave(self, departure: Departure) -> None:
        """Nobody waits for it."""

    def finish_saving(self) -> None:
        """Saving waits."""

    @contextmanager
    def load(self) -> Iterator[list[Path]]:
        yield [item.path for item in kept_in(self.folder)]

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any], *, wait: bool = True) -> None:
        write_whole(self.folder / f"checkpoint_{int(metrics['step']):09d}", write)
        for old in late(kept_in(self.folder), self.keep):
            shutil.rmtree(old)


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """A folder that `write` fills, put in its place in one move, so that it is there as a whole or not at all."""
    part = target.with_name(f"{target.name}{PART}{os.getpid()}")
    part.mkdir(parents=True, exist_ok=True)
    try:
        write(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that `Session.prepare` may have wrapped."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model
