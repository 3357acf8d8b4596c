"""The feed: each rank runs small Ray Data pipelines of its own, one after the other, on its own node.

A block is one rank's clips of one step, so blocks are the same size on every grid. A pipeline never crosses a grid phase, and covers so few steps
that all its blocks may wait in the object store: that bounds what is decoded ahead. (Ray Data's own bound would do it for a whole phase, but in Ray
2.60 its scheduling loop spins while a block is ready and over budget, at the cost of half a core a rank.) The next pipeline is opened when half of
the current one is used up, so that no phase change and no start of an execution is waited for. It gets as many decode tasks as its
grid asks: what decoding costs a byte, and how long the loop takes over a step, are measured on the way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import queue
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import TaskPoolStrategy
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from mgray.config import FeedSection
from mgray.data.source import Block, Blocks, ClipSource, Fault
from mgray.data.storage import Folder
from mgray.data.watch import TASK_RETRIES, Watch, watched
from mgray.errors import MgrayError, TrainingError
from mgray.plan.overlap import pipelines

ROW_BYTES = 8 << 20
"""Blocks of several steps travel together up to this size: a row costs the executor some 7 ms, however small."""
MAX_STEPS_PER_ROW = 8
MARGIN = 1.25
"""Decoders are provided for this many times the rate of training."""
_PACE_STEPS = 32
NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives each node."""
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
    cores: int = 1
    """CPUs of its node that this rank may decode with."""

    def blocks(self, source: ClipSource, segments: Sequence[range]) -> contextlib.closing[Blocks]:
        return contextlib.closing(self._blocks(source, segments))

    def _blocks(self, source: ClipSource, segments: Sequence[range]) -> Blocks:
        upcoming = (piece for segment in segments for piece in self._pieces(source, segment))
        opened: list[_Pipeline] = []
        pace = Pace()

        def open_next() -> None:
            piece = next(upcoming, None)
            if piece is not None:
                step_bytes = self.block_bytes(source, piece)
                decoders = self.section.decoders or pace.decoders(step_bytes, self.cores)
                opened.append(_Pipeline(self, source, piece, decoders))

        try:
            open_next()
            while opened:
                pipeline = opened[0]
                for left in reversed(range(len(pipeline.steps))):
                    if len(opened) == 1 and left <= len(pipeline.steps) // 2:
                        pace.decoded(pipeline.decode_s, pipeline.decoded_bytes)
                        open_next()
                    block = pipeline.take()
                    taken = time.perf_counter()
                    yield block
                    pace.stepped(time.perf_counter() - taken)
                opened.pop(0).close()
        finally:
            for pipeline in opened:
                pipeline.close()

    def _pieces(self, source: ClipSource, segment: range) -> Iterator[range]:
        """A segment cut into pipelines."""
        budget = int(self.section.ahead_gib * 2**30)
        yield from pipelines(segment, self.block_bytes(source, segment), self.section.ahead, budget)

    def block_bytes(self, source: ClipSource, steps: range) -> int:
        """Size of the largest block: the short cycle's slots are all among the first steps."""
        return max(1, *(source.num_bytes(step, self.rank, self.world_size) for step in steps[:4]))


class Pace:
    """What a byte of clips costs to decode, and how long the loop takes over a step: so many decoders are needed."""

    def __init__(self) -> None:
        self._s_per_byte = 0.0
        self._steps: deque[float] = deque(maxlen=_PACE_STEPS)

    def decoded(self, seconds: float, num_bytes: int) -> None:
        """A task's seconds over so many bytes."""
        if num_bytes:
            self._s_per_byte = seconds / num_bytes

    def stepped(self, seconds: float) -> None:
        """Time from one block's delivery until the next is asked for."""
        self._steps.append(seconds)

    def decoders(self, step_bytes: int, cores: int) -> int:
        """Tasks that decode steps of a size as fast as they are trained on, with a margin; all cores before anything is known."""
        if not self._s_per_byte or not self._steps:
            return cores
        # a step's time hardly depends on its grid, and validation between two steps is no step
        needed = MARGIN * self._s_per_byte * step_bytes / max(statistics.median(self._steps), 1e-6)
        return max(1, min(cores, math.ceil(needed)))


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
        cores = _cores(nodes)
        return [
            {name: GridShard(rank, world_size, nodes[rank], section, cores[rank]) for name, section in datasets.items()}
            for rank in range(world_size)
        ]


def _cores(nodes: Sequence[str]) -> list[int]:
    """For the rank on each node: what is left of the node's CPUs for decoding when each of its ranks has one."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    ranks = Counter(nodes)
    return [max(1, cpus.get(node, 1) // ranks[node] - 1) for node in nodes]


class _Pipeline:
    """One Ray Data execution over consecutive steps, drained by a thread as fast as it decodes."""

    def __init__(self, shard: GridShard, source: ClipSource, steps: range, decoders: int) -> None:
        self.steps = steps
        self.decode_s = 0.0
        """Seconds of decode tasks over the `decoded_bytes` that have come so far."""
        self.decoded_bytes = 0
        self._next = steps.start
        self._closed = threading.Event()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._drain, args=(shard, source, decoders), daemon=True, name="mgray-feed"
        )
        self._thread.start()

    def take(self) -> Block | None:
        """The next step's block, or None where this rank has no clip in it; waits for it."""
        item = self._queue.get()
        if isinstance(item, (WorkerCrashedError, OutOfMemoryError)):
            raise TrainingError(
                "step", self._next, f"a process that decodes it, or one of the {self.steps.stop - self._next - 1} steps after it, "
                f"died {TASK_RETRIES + 1} times",
                "see Ray's logs for the reason; where memory ran out, use fewer --feed.decoders or a smaller --feed.ahead-gib",
            ) from item  # fmt: skip
        if isinstance(item, BaseException):
            raise own_error(item) from item
        assert item is not _END, f"the feed ended before step {self._next}"
        assert item is None or item.index == self._next, f"block of step {item.index} where {self._next} was due"
        self._next += 1
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the execution up, where it still runs."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _drain(self, shard: GridShard, source: ClipSource, decoders: int) -> None:
        try:
            dataset = _dataset(shard, source, self.steps, decoders)
            with contextlib.closing(_batches(dataset)) as tables:
                for table in tables:
                    self.decode_s += table.column("decode_s")[0].as_py()
                    self.decoded_bytes += table.nbytes
                    for block in _blocks_of(table):
                        self._queue.put(block)
                    if self._closed.is_set():
                        return
            self._queue.put(_END)
        except BaseException as error:  # crosses to the training thread, which raises it
            self._queue.put(error)


def _batches(dataset: ray.data.Dataset) -> Generator[pa.Table, None, None]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _dataset(shard: GridShard, source: ClipSource, steps: range, decoders: int) -> ray.data.Dataset:
    rank, world_size = shard.rank, shard.world_size
    per_row = max(1, min(MAX_STEPS_PER_ROW, ROW_BYTES // shard.block_bytes(source, steps)))
    # rows come in order: with several decoders a task makes one row, so that they work on neighbouring steps
    per_task = per_row if decoders > 1 else len(steps)
    tasks = [steps[i : i + per_task] for i in range(0, len(steps), per_task)]
    dataset = ray.data.from_blocks([pa.table({"step": pa.array(task, pa.int64())}) for task in tasks])
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # rows are never merged, and each leaves its task as soon as it is decoded
    context.target_max_block_size = context.target_min_block_size = 1
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    ref, call = ray.put(source), uuid.uuid4().hex

    def decode(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        import torch

        torch.set_num_threads(1)  # tasks run beside each other, not threads
        shared, watch = ray.get(ref), _watch(call, int(batch["step"][0]))
        for first in range(0, len(batch["step"]), per_row):
            steps = [int(step) for step in batch["step"][first : first + per_row]]
            started = time.perf_counter()
            with watched(watch):
                row = _row_of(steps, [shared.block(step, rank, world_size) for step in steps])
            yield row | {"decode_s": np.array([time.perf_counter() - started])}
        if watch is not None:
            watch.end()

    # Decoding reserves no CPUs: where training holds all of a cluster's, it would wait for ever.
    decoded = dataset.map_batches(
        decode,
        batch_size=None,
        compute=TaskPoolStrategy(size=min(decoders, len(tasks))),
        num_cpus=0,
        max_retries=TASK_RETRIES,
        label_selector={NODE_LABEL: shard.node_id} if shard.node_id else None,
        fallback_strategy=[{"label_selector": {}}] if shard.node_id else None,
    )
    return cast(ray.data.Dataset, decoded)


def _watch(call: str, step: int) -> Watch | None:
    """Of a task that begins with a step, on this node; none where nothing can be written."""
    try:
        return Watch(Folder.of(tempfile.gettempdir()), f"mgray-{call}-{step}.watch", call)
    except OSError:
        return None


def _row_of(steps: Sequence[int], blocks: Sequence[Block | None]) -> dict[str, np.ndarray]:
    """The blocks of some steps as one row: their headers (step, version, N, T, H, W, label columns), and flat arrays of what they hold."""
    present = [block for block in blocks if block is not None]
    headers = [
        (step, -1, 0, 0, 0, 0, 0)
        if block is None
        else (
            step,
            block.version,
            *block.clips_NTHWC.shape[:4],
            block.labels_N[0].size if block.labels_N.ndim > 1 else 0,
        )
        for step, block in zip(steps, blocks, strict=True)
    ]

    def flat(arrays: list[np.ndarray], kind: type) -> np.ndarray:
        # a lone block is not copied
        whole = (
            arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([np.empty(0, kind), *map(np.ravel, arrays)])
        )
        return whole[None]

    return {
        "headers": np.array(headers, np.int64)[None],
        "clips": flat([block.clips_NTHWC for block in present], np.uint8),
        "labels": flat([block.labels_N for block in present], np.int64),
        "samples": flat([block.samples_N for block in present], np.int64),
        "positions": flat([block.positions_N for block in present], np.int64),
        "faults": np.array(
            [json.dumps([[dataclasses.astuple(fault) for fault in block.faults] for block in present])], object
        ),
    }


def _blocks_of(table: pa.Table) -> Iterator[Block | None]:
    """Zero-copy views of the blocks of a row, in order."""
    assert table.num_rows == 1

    def column(name: str) -> np.ndarray:
        return np.asarray(table.column(name).chunk(0).to_numpy(zero_copy_only=False)[0])

    clips, labels, samples, positions = (column(name) for name in ("clips", "labels", "samples", "positions"))
    first_byte = first = first_label = 0
    faults = iter(json.loads(table.column("faults")[0].as_py()))
    for step, version, count, frames, height, width, columns in column("headers").tolist():
        if version < 0:
            yield None
            continue
        end_byte, end = first_byte + count * frames * height * width * 3, first + count
        end_label = first_label + count * max(1, columns)
        own = labels[first_label:end_label]
        yield Block(
            index=step,
            version=version,
            clips_NTHWC=clips[first_byte:end_byte].reshape(count, frames, height, width, 3),
            labels_N=own.reshape(count, columns) if columns else own,
            samples_N=samples[first:end],
            positions_N=positions[first:end],
            faults=tuple(Fault(*fault) for fault in next(faults)),
        )
        first_byte, first, first_label = end_byte, end, end_label


def own_error(error: BaseException) -> BaseException:
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
