"""Session: what the loop asks of its surroundings. `RaySession` is a Ray Train worker, `LocalSession` one plain process."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgray.config import FeedSection
from mgray.data.feed import Feed
from mgray.data.local_feed import LocalFeed
from mgray.plan.state import ScheduleState

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

    def sync(self, state: ScheduleState, next_boundary: int) -> ScheduleState:
        """The newest schedule, the same on every rank; amendments from here on hold from `next_boundary` at the earliest."""

    def show(self, progress: dict[str, Any], state: ScheduleState, next_boundary: int) -> None:
        """Publish how far the run is for those who watch and amend it (rank 0 only, never waits)."""

    def load(self) -> AbstractContextManager[list[Path]]:
        """A context with the folders of the run's checkpoints, the newest first."""

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        """Store a checkpoint that `write` puts into a folder (called on rank 0 only); every rank takes part."""


@dataclass
class RaySession:
    """A worker of Ray Train; `driver` is the handle of the run's `ScheduleDriver`."""

    driver: Any
    _groups: dict[tuple[int, ...], dist.ProcessGroup] = field(default_factory=dict)

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

    def sync(self, state: ScheduleState, next_boundary: int) -> ScheduleState:
        newest = [ray.get(self.driver.sync.remote(state, next_boundary)) if self.rank == 0 else None]
        if self.world_size > 1:
            dist.broadcast_object_list(newest, src=0, device=self.device)
        return cast(ScheduleState, newest[0])

    def show(self, progress: dict[str, Any], state: ScheduleState, next_boundary: int) -> None:
        self.driver.show.remote(progress, state, next_boundary)

    @contextmanager
    def load(self) -> Iterator[list[Path]]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield []
            return
        with checkpoint.as_directory() as newest:
            folder = Path(newest)
            # Ray names them by time; it keeps the last ones beside each other
            older = sorted(
                (path for path in folder.parent.glob("checkpoint_*") if path.name < folder.name), reverse=True
            )
            yield [folder, *older]

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="mgray-checkpoint-") as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


@dataclass
class LocalSession:
    """One process without Ray; checkpoints are folders beneath `folder`."""

    folder: Path
    section: FeedSection = field(default_factory=FeedSection)
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keep: int = 3

    @property
    def feed(self) -> Feed:
        return LocalFeed(self.section, self.rank, self.world_size)

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        raise RuntimeError("one process needs no process group")

    def sync(self, state: ScheduleState, next_boundary: int) -> ScheduleState:
        return state

    def show(self, progress: dict[str, Any], state: ScheduleState, next_boundary: int) -> None:
        """Nobody watches."""

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("checkpoint_*") if path.is_dir() and ".part" not in path.name)

    @contextmanager
    def load(self) -> Iterator[list[Path]]:
        yield self._checkpoints()[::-1]

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        target = self.folder / f"checkpoint_{int(metrics['step']):09d}"
        part = target.with_name(target.name + f".part{os.getpid()}")
        part.mkdir(parents=True, exist_ok=True)
        write(part)
        if target.exists():
            shutil.rmtree(target)
        os.replace(part, target)
        for old in self._checkpoints()[: -self.keep]:
            shutil.rmtree(old)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that `Session.prepare` may have wrapped."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model
