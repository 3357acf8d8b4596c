"""The feed: each rank runs its own small Ray Data pipelines, one per grid phase, on its own node.

One block is one rank's clips of one step, so blocks are the same size on every grid and back-pressure is bounded in bytes. The next phase's
pipeline is opened before the current one drains.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mgray.config import FeedSection
from mgray.data.source import Block, Blocks, ClipSource
from mgray.errors import MgrayError

OPEN_AHEAD_STEPS = 64
"""Steps before a pipeline's end at which the next one is opened: an execution takes about a second to start."""
MAX_TASKS = 512
"""Decode tasks of one pipeline: the driver of an execution holds one small block for each."""
_END = object()


class Feed(Protocol):
    """Delivers blocks in order."""

    def blocks(self, source: ClipSource, segments: Sequence[range]) -> contextlib.closing[Blocks]:
        """The rank's block of every batch of every segment, in order; None where the rank has no clip in it."""


@dataclass(frozen=True, slots=True)
class GridShard:
    """A rank's end of the feed, as `ray.train.get_dataset_shard` returns it."""

    rank: int
    world_size: int
    node_id: str
    section: FeedSection

    def blocks(self, source: ClipSource, segments: Sequence[range]) -> contextlib.closing[Blocks]:
        return contextlib.closing(self._blocks(source, segments))

    def _blocks(self, source: ClipSource, segments: Sequence[range]) -> Blocks:
        pieces = [piece for segment in segments for piece in _pieces(segment, self.section.decoders)]
        opened: list[_Pipeline] = []
        upcoming = iter(pieces)

        def open_next() -> None:
            piece = next(upcoming, None)
            if piece is not None:
                opened.append(_Pipeline(self, source, piece))

        try:
            open_next()
            while opened:
                pipeline = opened[0]
                for left in reversed(range(len(pipeline.steps))):
                    if left < OPEN_AHEAD_STEPS and len(opened) == 1:
                        open_next()
                    yield pipeline.take()
                opened.pop(0).close()
        finally:
            for pipeline in opened:
                pipeline.close()


class GridDataConfig(ray.train.DataConfig):
    """Hands each rank its `GridShard`; evaluated anew whenever a worker group starts, so that ranks may come and go."""

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: object,
    ) -> list[dict[str, Any]]:
        """One shard per rank and name; each value of `datasets` is the `FeedSection` of that feed."""
        nodes = worker_node_ids or [""] * world_size
        return [
            {name: GridShard(rank, world_size, nodes[rank], section) for name, section in datasets.items()}
            for rank in range(world_size)
        ]


class _Pipeline:
    """One Ray Data execution over consecutive steps, drained by a thread into a short queue."""

    def __init__(self, shard: GridShard, source: ClipSource, steps: range) -> None:
        self.steps = steps
        self._next = steps.start
        self._closed = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._drain, args=(shard, source), daemon=True, name="mgray-feed")
        self._thread.start()

    def take(self) -> Block | None:
        """The next step's block, or None where this rank has no clip in it; waits for it."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise _own_error(item) from item
        assert item is not _END, f"the feed ended before step {self._next}"
        assert item is None or item.index == self._next, f"block of step {item.index} where {self._next} was due"
        self._next += 1
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the execution up, where it still runs."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def _drain(self, shard: GridShard, source: ClipSource) -> None:
        try:
            dataset = _dataset(shard, source, self.steps)
            with contextlib.closing(_batches(dataset)) as tables:
                for table in tables:
                    if not self._put(_block_of(table)):
                        return
            self._put(_END)
        except BaseException as error:  # crosses to the training thread, which raises it
            self._put(error)


def _batches(dataset: ray.data.Dataset) -> Generator[pa.Table, None, None]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _pieces(segment: range, decoders: int) -> Iterator[range]:
    length = MAX_TASKS * _steps_per_task(decoders)
    for start in range(segment.start, segment.stop, length):
        yield range(start, min(start + length, segment.stop))


def _steps_per_task(decoders: int) -> int:
    """Blocks come in order: with several decoders a task is one step, so that they work on neighbouring steps."""
    return 16 if decoders == 1 else 1


def _dataset(shard: GridShard, source: ClipSource, steps: range) -> ray.data.Dataset:
    section, rank, world_size = shard.section, shard.rank, shard.world_size
    size = _steps_per_task(section.decoders)
    tasks = [steps[i : i + size] for i in range(0, len(steps), size)]
    dataset = ray.data.from_blocks([pa.table({"step": pa.array(task, pa.int64())}) for task in tasks])
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # a row is a whole block: rows are never merged, and each leaves its task as soon as it is decoded
    context.target_max_block_size = context.target_min_block_size = 1
    # the short cycle's slots are all among the first steps
    sizes = [source.num_bytes(step, rank, world_size) for step in steps[:4]]
    options = context.execution_options
    options.preserve_order = True
    options.verbose_progress = False
    options.resource_limits = ExecutionResources(object_store_memory=section.ahead * max(1, *sizes))
    ref = ray.put(source)

    def decode(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        shared = ray.get(ref)
        for step in batch["step"]:
            yield _row_of(int(step), shared.block(int(step), rank, world_size))

    near = NodeAffinitySchedulingStrategy(shard.node_id, soft=True) if shard.node_id else "DEFAULT"
    # A task that waits for its consumer keeps its CPUs. If it reserved any, the pipeline that is ahead, or training's
    # own during a validation, could keep those that the pipeline in turn needs: both would wait for ever.
    decoded = dataset.map_batches(
        decode,
        batch_size=None,
        compute=TaskPoolStrategy(size=section.decoders),
        num_cpus=0,
        scheduling_strategy=near,
    )
    return cast(ray.data.Dataset, decoded)


def _row_of(step: int, block: Block | None) -> dict[str, np.ndarray]:
    if block is None:
        clips, rest, version = np.zeros((1, 0, 1, 1, 1, 3), np.uint8), np.zeros((1, 0), np.int64), -1
        return {
            "index": np.array([[step, version]]),
            "clips": clips,
            "labels": rest,
            "samples": rest,
            "positions": rest,
        }
    return {
        "index": np.array([[block.index, block.version]]),
        "clips": block.clips_NTHWC[None],
        "labels": block.labels_N[None],
        "samples": block.samples_N[None],
        "positions": block.positions_N[None],
    }


def _block_of(table: pa.Table) -> Block | None:
    """A zero-copy view of a decoded row."""
    assert table.num_rows == 1

    def column(name: str) -> np.ndarray:
        return np.asarray(table.column(name).chunk(0).to_numpy(zero_copy_only=False)[0])

    index, version = (int(value) for value in column("index"))
    if version < 0:
        return None
    return Block(index, version, column("clips"), column("labels"), column("samples"), column("positions"))


def _own_error(error: BaseException) -> BaseException:
    """The error of ours that Ray has wrapped, or the error itself.

    Ray's wrapper is of our class too, but reads as a page of tracebacks and does not pickle.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MgrayError) and not isinstance(seen, RayTaskError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def quiet_ray_data() -> None:
    """Keep Ray Data's own messages out of the terminal (they are in Ray's log folder)."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
