import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mgray.data.annotations import Action
from mgray.data.clip import Views, train_clip
from mgray.data.decode.clips import decode_clip, decode_clips
from mgray.data.shards.manifest import SOURCE
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, TrainSource, ValSource
from mgray.errors import VideoError
from mgray.plan import ClipShape, Plan, PlanSpec, sample_at, substitute_at
from tests.support.shards import write_shards

SPEC = PlanSpec(
    frames=4, crop=16, batch=3, stride=2, jitter_min=18, jitter_max=24, epochs=40, lr_steps=(0, 30), lr_factors=(1.0, 0.1),
    long_cycle="run", short_cycle=True, bn_group=4,
)  # fmt: skip
SEED = 7
WORLDS = range(1, 10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def source(shards) -> TrainSource:
    return TrainSource(shards, Plan.compile(SPEC, 10), SEED, fps=0.0, flip=True, version=3)


def val_source(shards: ShardSet, batch: int) -> ValSource:
    return ValSource(shards, ClipShape(3, 16, 16), stride=2, short_side=20, fps=0.0, batch=batch)


def same(one: Block, other: Block) -> bool:
    return (one.index, one.version) == (other.index, other.version) and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("clips_NTHWC", "labels_N", "samples_N", "positions_N")
    )


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_ranks_clips_are_the_batch_in_order(source, world_size):
    plan = source.plan
    shapes = set()
    for index in range(plan.num_steps):
        step = plan.step_at(index)
        clips = [clip for rank in range(world_size) for clip in source.clips(index, rank, world_size)]
        assert [clip.position for clip in clips] == list(step.positions)
        assert [clip.sample for clip in clips] == [sample_at(position, 10, SEED) for position in step.positions]
        assert {clip.shape for clip in clips} == {step.shape.clip}
        shapes.add(step.shape)
    assert len(shapes) >= 6 and min(shape.clips for shape in shapes) == 3


def test_a_block_is_what_its_clips_say(source):
    for index in (0, source.plan.num_steps - 1):
        step = source.plan.step_at(index)
        block = source.block(index, 0, 1)
        shape = step.shape
        assert (block.index, block.version) == (index, 3)
        assert block.clips_NTHWC.shape == (shape.clips, shape.frames, shape.height, shape.width, 3)
        assert block.clips_NTHWC.dtype == np.uint8
        assert block.positions_N.tolist() == list(step.positions)
        assert block.samples_N.tolist() == [sample_at(position, 10, SEED) for position in step.positions]
        assert block.labels_N.tolist() == [sample % 2 for sample in block.samples_N]
        assert block.labels_N.dtype == block.samples_N.dtype == block.positions_N.dtype == np.int64


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_blocks_do_not_depend_on_who_decodes_them(source, world_size):
    last = source.plan.num_steps - 1
    whole = source.block(last, 0, 1)
    parts = [source.block(last, rank, world_size) for rank in reversed(range(world_size))][::-1]
    assert (None in parts) == (world_size > whole.positions_N.size)
    for name in ("clips_NTHWC", "labels_N", "samples_N", "positions_N"):
        joined = np.concatenate([getattr(part, name) for part in parts if part is not None])
        assert np.array_equal(joined, getattr(whole, name))
    assert [
        0 if part is None else part.clips_NTHWC.nbytes for part in parts
    ] == [source.num_bytes(last, rank, world_size) for rank in range(world_size)]  # fmt: skip


def test_another_process_decodes_the_same_without_ray(source):
    code = (
        "import pickle, sys; source = pickle.loads(sys.stdin.buffer.read()); block = source.block(1, 1, 2);"
        "assert 'ray' not in sys.modules; sys.stdout.buffer.write(pickle.dumps(block))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert same(pickle.loads(done.stdout), source.block(1, 1, 2))


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_every_validation_video_is_in_one_batch(shards, world_size, batch):
    source = val_source(shards, batch)
    seen = []
    for index in range(source.num_batches(world_size)):
        sizes = []
        for rank in range(world_size):
            clips = source.clips(index, rank, world_size)
            sizes.append(len(clips))
            seen += [clip.sample for clip in clips]
            assert source.num_bytes(index, rank, world_size) == 3 * len(clips) * 3 * 16 * 16
        assert max(sizes) <= batch and sum(sizes) > 0
    assert seen == list(range(5))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_video_is_in_one_batch_with_all_its_views(shards, world_size, batch):
    source = dataclasses.replace(val_source(shards, batch), views=Views(clips=2, crops=3))
    seen, batches = [], set()
    for index in range(source.num_batches(world_size)):
        for rank in range(world_size):
            clips = source.clips(index, rank, world_size)
            assert source.num_bytes(index, rank, world_size) == 3 * len(clips) * 3 * 16 * 16
            videos = [clip.sample for clip in clips[::6]]
            assert [clip.sample for clip in clips] == [video for video in videos for _ in range(6)]
            seen += [clip.position for clip in clips]
            batches.add(tuple(videos))
    assert seen == list(range(5 * 6))
    alone = range(source.num_batches(1))
    assert batches - {()} == {tuple(clip.sample for clip in source.clips(index, 0, 1)[::6]) for index in alone}


def test_views_are_decoded_together_as_they_are_alone(shards):
    source = dataclasses.replace(val_source(shards, 2), views=Views(clips=3, crops=3))
    block = source.block(1, 0, 1)
    assert block.samples_N.tolist() == [2] * 9 + [3] * 9
    assert block.labels_N.tolist() == [shards.label("val", 2)] * 9 + [shards.label("val", 3)] * 9
    for spec, clip_THWC in zip(source.clips(1, 0, 1), block.clips_NTHWC, strict=True):
        alone = np.zeros_like(clip_THWC)
        decode_clip(shards.video("val", spec.sample), spec, alone)
        assert np.array_equal(clip_THWC, alone)
    assert not np.array_equal(block.clips_NTHWC[0], block.clips_NTHWC[1])


def test_validation_blocks(shards):
    source = val_source(shards, 2)
    blocks = [source.block(index, rank, 2) for index in range(source.num_batches(2)) for rank in range(2)]
    assert [block is None for block in blocks] == [False, False, False, True]
    assert [block.clips_NTHWC.nbytes for block in blocks[:3]] == [source.num_bytes(i // 2, i % 2, 2) for i in range(3)]
    assert source.num_bytes(1, 1, 2) == 0
    samples = np.concatenate([block.samples_N for block in blocks[:3]])
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert np.concatenate([block.labels_N for block in blocks[:3]]).tolist() == [
        shards.label("val", i) for i in range(5)
    ]


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> ShardSet:
    """Ten training videos, three of them noise, and five for validation, one of them noise."""
    return write_shards(tmp_path_factory.mktemp("broken"), damaged=(2, 3, 7, 11))


def test_a_broken_video_is_replaced_by_the_next_probe_that_decodes(shards, broken):
    """Everything else is as it would be; the substitute's clip is what its own draws at that position give."""
    plan = Plan.compile(SPEC, 10)
    seen = set()
    for index in range(0, plan.num_steps, 3):
        step = plan.step_at(index)
        whole = TrainSource(shards, plan, SEED, fps=0.0, flip=True).block(index, 0, 1)
        block = TrainSource(broken, plan, SEED, fps=0.0, flip=True).block(index, 0, 1)
        expected = []
        for place, position in enumerate(step.positions):
            tried = [sample_at(position, 10, SEED), *(substitute_at(position, probe, 10, SEED) for probe in range(10))]
            tried = list(dict.fromkeys(tried))
            first = next(number for number, sample in enumerate(tried) if sample not in (2, 3, 7))
            assert block.samples_N[place] == tried[first] and block.labels_N[place] == tried[first] % 2
            expected += [(position, sample, tried[first]) for sample in tried[:first]]
            clip = train_clip(
                step, position, tried[first], broken.info("train", tried[first]), seed=SEED, fps=0.0, flip=True
            )
            alone = np.zeros_like(block.clips_NTHWC[place])
            decode_clip(shards.video("train", clip.sample), clip, alone)
            assert np.array_equal(block.clips_NTHWC[place], alone)
            if not first:
                assert np.array_equal(alone, whole.clips_NTHWC[place])
        assert [(fault.position, fault.sample, fault.substitute) for fault in block.faults] == expected
        assert all("does not decode" in fault.reason for fault in block.faults)
        seen |= {fault.sample for fault in block.faults}
    assert seen == {2, 3, 7}


def test_a_video_that_takes_too_long_is_replaced(shards, source, monkeypatch):
    def decode(video, specs, out):
        decode_clips(video, specs, out, **({"limit_s": 0.0} if specs[0].sample == 4 else {}))

    monkeypatch.setattr("mgray.data.source.decode_clips", decode)
    block = source.block(0, 0, 1)
    planned = [clip.sample for clip in source.clips(0, 0, 1)]
    assert 4 in planned and 4 not in block.samples_N
    assert [fault.sample for fault in block.faults] == [4] * planned.count(4)
    assert all("does not decode within 0 s" in fault.reason for fault in block.faults)


@pytest.mark.parametrize("world_size", [2, 3])
def test_substitutes_do_not_depend_on_who_decodes(broken, world_size):
    source = TrainSource(broken, Plan.compile(SPEC, 10), SEED, fps=0.0, flip=True)
    for index in (0, 5, source.plan.num_steps - 1):
        whole = source.block(index, 0, 1)
        parts = [part for rank in range(world_size) if (part := source.block(index, rank, world_size)) is not None]
        for name in ("clips_NTHWC", "labels_N", "samples_N"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
        assert tuple(fault for part in parts for fault in part.faults) == whole.faults


def test_a_broken_validation_video_is_left_out_with_all_its_views(broken):
    source = dataclasses.replace(val_source(broken, 2), views=Views(clips=2, crops=3))
    blocks = [source.block(index, 0, 1) for index in range(source.num_batches(1))]
    assert [sorted(set(block.samples_N.tolist())) for block in blocks] == [[0], [2, 3], [4]]
    assert [len(block.faults) for block in blocks] == [6, 0, 0]
    assert {(fault.sample, fault.substitute) for fault in blocks[0].faults} == {(1, -1)}
    assert blocks[0].clips_NTHWC.shape[0] == len(blocks[0].labels_N) == 6
    alone = dataclasses.replace(source, batch=1).block(1, 0, 1)
    assert alone.clips_NTHWC.shape == (0, 3, 16, 16, 3) and not len(alone.labels_N)


def test_where_everything_is_broken_the_video_is_named(tmp_path):
    shards = write_shards(tmp_path, train=2, val=1, damaged=(0, 1))
    plan = Plan.compile(
        PlanSpec(frames=2, crop=16, batch=2, stride=1, jitter_min=18, jitter_max=18, epochs=1, lr_steps=(0,)), 2
    )
    with pytest.raises(VideoError, match=r"data.path = '[01].mp4': .+, as are 1 more videos; verify the shards"):
        TrainSource(shards, plan, 0, fps=0.0, flip=False).block(0, 0, 1)


def test_labels_of_a_multi_label_set_are_those_that_a_training_clip_shows_and_all_of_a_validation_video(tmp_path):
    # at 25 frames/s; the video of 10 to 12 frames ends after 0.48 s
    early, late = Action(label=0, start_s=0.0, end_s=0.0), Action(label=2, start_s=0.2, end_s=9.0)
    shards = write_shards(tmp_path, classes=3, actions=[(early, late), (), (late,)])
    spec = PlanSpec(
        frames=3, crop=16, batch=4, stride=1, jitter_min=16, jitter_max=20, epochs=4, lr_steps=(0,), lr_factors=(1.0,)
    )
    source = TrainSource(shards, Plan.compile(spec, 10), SEED, fps=0.0, flip=True)
    seen = set()
    for step in range(source.plan.num_steps):
        clips, block = source.clips(step, 0, 1), source.block(step, 0, 1)
        assert block.labels_N.shape == (4, 3) and block.labels_N.dtype == np.int64
        for clip, labels in zip(clips, block.labels_N.tolist(), strict=True):
            rate = shards.info("train", clip.sample).fps
            first, last = clip.frames[0] / rate, clip.frames[-1] / rate
            actions = ((early, late), (), (late,))[clip.sample % 3]
            expected = [0, 0, 0]
            for action in actions:
                if action.start_s <= last and action.end_s >= first:
                    expected[action.label] = 1
            assert labels == expected
            seen.add(tuple(labels))
    assert {(0, 0, 0), (0, 0, 1)} < seen and any(labels[0] for labels in seen)
    val = ValSource(shards, ClipShape(3, 16, 16), stride=1, short_side=16, fps=0.0, batch=5)
    kinds = ([1, 0, 1], [0, 0, 0], [0, 0, 1])
    assert val.block(0, 0, 1).labels_N.tolist() == [kinds[(10 + i) % 3] for i in range(5)]
    halves = [source.block(0, rank, 2).labels_N for rank in (0, 1)]
    assert np.array_equal(np.concatenate(halves), source.block(0, 0, 1).labels_N)


def test_a_multi_label_set_keeps_its_actions_and_another_digest(tmp_path):
    action = Action(label=1, start_s=0.5, end_s=1.5)
    shards = write_shards(tmp_path / "a", classes=2, actions=[(action,), ()])
    assert shards.multi_label and shards.manifest.version == 3
    assert shards.shown("train", 0).tolist() == [0, 1] and shards.shown("train", 1).tolist() == [0, 0]
    for begin, end, shows in ((0.0, 0.49, 0), (0.0, 0.5, 1), (1.5, 2.0, 1), (1.51, 2.0, 0), (0.7, 0.8, 1)):
        assert shards.shown("val", 0, begin, end)[1] == shows
    moved = write_shards(tmp_path / "b", classes=2, actions=[(dataclasses.replace(action, end_s=1.6),), ()])
    assert moved.digest() != shards.digest()
    shards.verify()
    plain = write_shards(tmp_path / "c", classes=2)
    assert not plain.multi_label and plain.manifest.version == 2


def test_segments_are_sampled_alike_on_any_number_of_ranks(tmp_path):
    shards = write_shards(tmp_path)
    source = TrainSource(shards, Plan.compile(SPEC, 10), SEED, fps=0.0, flip=True, sampling="segments")
    step = source.plan.num_steps - 1  # of the base shape
    whole = source.clips(step, 0, 1)
    assert source.clips(step, 0, 2) + source.clips(step, 1, 2) == whole
    assert all(clip.frames[-1] > shards.info("train", clip.sample).num_frames // 2 for clip in whole)
    assert whole != TrainSource(shards, Plan.compile(SPEC, 10), SEED, fps=0.0, flip=True).clips(step, 0, 1)


def test_a_shard_that_is_gone_or_cut_off_is_the_videos_fault(tmp_path):
    shards = write_shards(tmp_path, train=4, val=1, levels=(32, 16), damaged=3)
    plan = Plan.compile(
        PlanSpec(frames=2, crop=16, batch=4, stride=1, jitter_min=32, jitter_max=32, epochs=1, lr_steps=(0,)), 4
    )
    source = TrainSource(shards, plan, 0, fps=0.0, flip=False)
    path = tmp_path / "set" / "32" / "00000.arrow"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(VideoError, match=r"32/00000.arrow is damaged \(it has \d+ bytes"):
        source.block(0, 0, 1)
    path.unlink()
    with pytest.raises(VideoError, match=r"its file 32/00000.arrow is missing, as are 3 more videos"):
        source.block(0, 0, 1)


def test_sources_that_vanish_or_change_are_replaced(tmp_path):
    """Passed through: one is deleted, one cut off, one grows, one is another video now; the others are trained on."""
    shards = write_shards(tmp_path, train=8, val=1, levels=SOURCE)
    source = TrainSource(shards, Plan.compile(SPEC, 8), SEED, fps=0.0, flip=True)
    last = source.plan.num_steps - 1
    whole = [source.block(index, 0, 1) for index in (last, 0)]
    assert not any(block.faults for block in whole)
    (tmp_path / "1.mp4").unlink()
    os.truncate(tmp_path / "3.mp4", 2000)
    with (tmp_path / "4.mp4").open("ab") as file:
        file.write(b"more")
    size = (tmp_path / "6.mp4").stat().st_size
    (tmp_path / "6.mp4").write_bytes(bytes(size))
    reasons = {}
    for before in whole:
        block = source.block(before.index, 0, 1)
        kept = ~np.isin(before.samples_N, (1, 3, 4, 6))
        assert np.array_equal(block.samples_N[kept], before.samples_N[kept])
        assert np.array_equal(block.clips_NTHWC[kept], before.clips_NTHWC[kept])
        assert not np.isin(block.samples_N, (1, 3, 4, 6)).any()
        reasons |= {fault.sample: fault.reason for fault in block.faults}
    assert reasons.keys() == {1, 3, 4, 6}
    assert "cannot be read any more" in reasons[1] and "does not decode" in reasons[6]
    assert reasons[3] == reasons[4] == "has changed since it was ingested"
