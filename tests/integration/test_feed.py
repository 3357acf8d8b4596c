"""Ray's feed delivers the blocks that one process would make."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from mgray.bench import pipeline
from mgray.bench.feed import Cell
from mgray.config import FeedSection
from mgray.data import feed as feed_module
from mgray.data.feed import GridDataConfig, GridShard, Pace
from mgray.data.local_feed import LocalFeed
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, TrainSource, ValSource
from mgray.errors import TrainingError, VideoError
from mgray.plan import ClipShape, Plan, PlanSpec
from mgray.plan.state import segments_of
from tests.support.shards import write_shards

pytestmark = pytest.mark.ray
SPEC = PlanSpec(
    frames=4, crop=16, batch=3, stride=1, jitter_min=18, jitter_max=24, epochs=40, lr_steps=(0, 30), lr_factors=(1.0, 0.1),
    long_cycle="run", short_cycle=True, bn_group=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("small"))


def source_of(shards: ShardSet) -> TrainSource:
    return TrainSource(shards, Plan.compile(SPEC, shards.num_samples("train")), seed=3, fps=0.0, flip=True, version=5)


def assert_equal(ours: Block | None, theirs: Block | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert (ours.index, ours.version) == (theirs.index, theirs.version)
        for name in ("clips_NTHWC", "labels_N", "samples_N", "positions_N"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize(("rank", "world_size", "decoders", "ahead"), [(0, 1, 1, 32), (1, 3, 2, 5), (4, 5, 1, 7)])
def test_blocks_are_those_of_one_process(
    ray_instance: None, small: ShardSet, rank: int, world_size: int, decoders: int, ahead: int
) -> None:
    """Across phases, in rows of several steps, also where a rank has no clip (3 clips on 5 ranks)."""
    source = source_of(small)
    segments = segments_of(source.plan, 2, source.plan.num_steps)
    assert len(segments) >= 4
    shard = GridShard(rank, world_size, "", FeedSection(decoders=decoders, ahead=ahead))
    with (
        shard.blocks(source, segments) as ours,
        LocalFeed(FeedSection(), rank, world_size).blocks(source, segments) as theirs,
    ):
        count = 0
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
            count += 1
    assert count == source.plan.num_steps - 2


class Crashing:
    """A source whose decoder takes its process with it, as a fault in FFmpeg would."""

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        return 100


def test_a_decoder_that_always_crashes_is_given_up(ray_instance: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data alone would start it again for ever. (One that crashes at a video: tests/unit/data/test_watch.py.)"""
    monkeypatch.setattr(feed_module, "TASK_RETRIES", 1)
    with (
        GridShard(0, 1, "", FeedSection(decoders=1)).blocks(Crashing(), [range(0, 2)]) as blocks,  # type: ignore[arg-type]
        pytest.raises(TrainingError, match=r"step = 0: a process that decodes it, .* died 2 times; see Ray's logs"),
    ):
        next(blocks)


def test_pipelines_overlap_and_end(ray_instance: None, small: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next pipeline is opened while the current one has blocks left; two are open at most; closing early ends both."""
    open_now, most, opened_early = [], [], []

    class Counted(feed_module._Pipeline):
        def __init__(self, shard, source, steps, decoders):
            if open_now:
                opened_early.append(steps.start - open_now[0]._next)
            open_now.append(self)
            most.append(len(open_now))
            super().__init__(shard, source, steps, decoders)

        def close(self):
            open_now.remove(self)
            super().close()

    monkeypatch.setattr(feed_module, "_Pipeline", Counted)
    source = source_of(small)
    shard = GridShard(0, 1, "", FeedSection(ahead=6))
    with shard.blocks(source, [range(0, 30)]) as blocks:
        for _ in range(20):
            next(blocks)
        assert open_now
    assert not open_now
    assert max(most) == 2
    assert all(left > 0 for left in opened_early) and len(opened_early) >= 3
    assert not [thread for thread in threading.enumerate() if thread.name == "mgray-feed"]
    with shard.blocks(source, [range(4, 8)]) as blocks:
        assert [block.index for block in blocks] == [4, 5, 6, 7]


def test_it_needs_no_free_cpu_and_runs_beside_another(ray_instance: None, small: ShardSet) -> None:
    """Training may hold every CPU of the cluster; validation decodes while training's own pipelines wait."""

    class Holder:
        def ready(self) -> None: ...

    holder = ray.remote(num_cpus=ray.available_resources()["CPU"])(Holder).remote()
    ray.get(holder.ready.remote())
    assert not ray.available_resources().get("CPU", 0)
    source = source_of(small)
    shape = ClipShape(2, 16, 16)
    validation = ValSource(small, shape, stride=1, short_side=20, fps=0.0, batch=1)
    shard = GridShard(0, 1, ray.get_runtime_context().get_node_id(), FeedSection(decoders=1, ahead=10))
    try:
        with shard.blocks(source, [range(0, 10), range(10, 20)]) as blocks:
            for index in range(20):
                assert next(blocks).index == index
                if index in (2, 12):
                    with shard.blocks(validation, [range(5)]) as inner:
                        assert [block.index for block in inner] == list(range(5))
    finally:
        ray.kill(holder)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_faults_travel_with_their_blocks(ray_instance: None, tmp_path: Path, rank: int, world_size: int) -> None:
    shards = write_shards(tmp_path, damaged=(2, 5, 10))
    validation = ValSource(shards, ClipShape(3, 16, 16), stride=2, short_side=20, fps=0.0, batch=1)
    for source, count in ((source_of(shards), 12), (validation, validation.num_batches(world_size))):
        with (
            GridShard(rank, world_size, "", FeedSection()).blocks(source, [range(count)]) as ours,
            LocalFeed(FeedSection(), rank, world_size).blocks(source, [range(count)]) as theirs,
        ):
            faults = []
            for mine, other in zip(ours, theirs, strict=True):
                assert_equal(mine, other)
                if mine is not None and other is not None:
                    assert mine.faults == other.faults
                    faults += mine.faults
        assert faults or rank


def test_the_bench_delivers_what_it_decodes(
    ray_instance: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mgray bench feed --ray`: a cell's blocks, of as many clips as fill them, both ways."""
    monkeypatch.setattr(pipeline, "BLOCK_VOXELS", 5 * 4 * 16 * 16)
    shards = write_shards(tmp_path, train=4)
    specs = tuple(source_of(shards).clips(0, 0, 1))[:3]
    frames, height, width = specs[0].shape.frames, specs[0].shape.height, specs[0].shape.width
    source = pipeline.CellSource(shards, specs, 1.0, clips=5)
    block = source.block(1, 0, 1)
    assert block is not None and block.clips_NTHWC.nbytes == source.num_bytes(1, 0, 1)
    assert block.samples_N.tolist() == [specs[n % 3].sample for n in range(1, 6)]
    cell = Cell(frames=frames, height=height, width=width, share=1.0, specs=specs)
    costs = pipeline.measure_pipelines(shards, [cell], 1.0, blocks=2, rounds=1)
    assert costs.keys() == {cell.name} and costs[cell.name].decoded_s > 0 and costs[cell.name].delivered_s > 0


def test_where_all_videos_are_broken_it_is_our_error(ray_instance: None, tmp_path: Path) -> None:
    source = source_of(write_shards(tmp_path, damaged=tuple(range(10))))
    with (
        GridShard(0, 1, "", FeedSection()).blocks(source, [range(source.plan.num_steps)]) as blocks,
        pytest.raises(VideoError) as caught,
    ):
        list(blocks)
    assert type(caught.value) is VideoError
    assert str(caught.value).startswith("data.path = '") and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_ranks_are_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": cpus}} for name, cpus in (("a", 16.0), ("b", 4.0))]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    section = FeedSection(decoders=2)
    made = GridDataConfig().configure({"train": section}, 4, None, ["a", "b", "b", "elsewhere"])
    assert made == [
        {"train": GridShard(0, 4, "a", section, cores=15)},
        {"train": GridShard(1, 4, "b", section, cores=1)},
        {"train": GridShard(2, 4, "b", section, cores=1)},
        {"train": GridShard(3, 4, "elsewhere", section, cores=1)},
    ]


def test_decoders_follow_what_decoding_and_training_take() -> None:
    pace = Pace()
    assert pace.decoders(1000, 12) == 12  # nothing is known
    for seconds in (0.1, 0.1, 60.0):  # a validation in between
        pace.stepped(seconds)
    pace.decoded(1.6, 8000)
    assert pace.decoders(1000, 12) == 3  # 0.2 s a step against 0.1 s, and a quarter more
    assert pace.decoders(8000, 12) == 12 and pace.decoders(10, 12) == 1
    pace.decoded(0.0, 0)
    assert pace.decoders(1000, 12) == 3


def test_a_pipeline_gets_the_decoders_that_are_needed(
    ray_instance: None, small: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, made = [], feed_module._dataset
    monkeypatch.setattr(feed_module, "_dataset", lambda *args: (counts.append(args[3]), made(*args))[1])
    source = source_of(small)
    with GridShard(0, 1, "", FeedSection(ahead=8), cores=3).blocks(source, [range(0, 24)]) as blocks:
        for index, block in enumerate(blocks):
            assert block is not None and block.index == index
            time.sleep(0.2)
    assert counts == [3, 1, 1]
