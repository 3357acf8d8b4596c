import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgray.data.clip import ClipSpec, VideoInfo, center_clip, train_clip
from mgray.plan import BatchShape, ClipShape, Step

videos = st.builds(
    VideoInfo, num_frames=st.integers(1, 600), width=st.integers(16, 2000), height=st.integers(16, 2000), fps=st.floats(1, 120)
)  # fmt: skip
seeds = st.integers(-(2**63), 2**64)
positions = st.integers(0, 2**50)


def make_step(frames=8, crop=112, jitter=(128, 160), stride=(2, 8)) -> Step:
    return Step(
        index=0, phase=0, slot=0, shape=BatchShape(16, frames, crop, crop), first_position=0, epoch=0.0, lr=0.1,
        jitter_min=jitter[0], jitter_max=jitter[1], stride_min=stride[0], stride_max=stride[1], bn_groups=2,
    )  # fmt: skip


@st.composite
def steps(draw) -> Step:
    crop = draw(st.integers(8, 320))
    low = draw(st.integers(crop, 400))
    first = draw(st.integers(1, 16))
    return make_step(
        frames=draw(st.integers(1, 64)),
        crop=crop,
        jitter=(low, draw(st.integers(low, 500))),
        stride=(first, draw(st.integers(first, 32))),
    )


def clip_at(step: Step, position: int, video: VideoInfo, seed=0, fps=0.0, flip=True) -> ClipSpec:
    return train_clip(step, position, 3, video, seed=seed, fps=fps, flip=flip)


def check_geometry(clip: ClipSpec, video: VideoInfo) -> None:
    left, top, right, bottom = clip.box
    assert 0 <= left < right <= video.width and 0 <= top < bottom <= video.height
    aspect = (right - left) / (bottom - top)
    assert math.isclose(aspect, clip.shape.width / clip.shape.height, rel_tol=1e-6)
    assert len(clip.frames) == clip.shape.frames
    assert clip.frames[0] >= 0 and clip.frames[-1] < video.num_frames
    assert list(clip.frames) == sorted(clip.frames)


@given(steps(), positions, seeds, videos, st.sampled_from([0.0, 12.5, 30.0]))
def test_a_training_clip_lies_within_its_video_and_bounds(step, position, seed, video, fps):
    clip = clip_at(step, position, video, seed=seed, fps=fps)
    check_geometry(clip, video)
    assert clip == clip_at(step, position, video, seed=seed, fps=fps)
    rate = video.fps / fps if fps else 1.0
    gaps = np.diff([frame for frame in clip.frames if frame < video.num_frames - 1])
    if len(gaps):
        assert step.stride_min * rate - 1 <= gaps.min() and gaps.max() <= step.stride_max * rate + 1
    side = clip.shape.height / (clip.box[3] - clip.box[1]) * min(video.width, video.height)
    assert side > step.jitter_min * (1 - 1e-9)


@given(videos, st.integers(1, 64), st.integers(8, 256), st.integers(8, 256), st.integers(1, 16))
def test_a_center_clip_is_central(video, frames, height, width, stride):
    clip = center_clip(5, video, ClipShape(frames, height, width), stride=stride, short_side=256, fps=0.0)
    check_geometry(clip, video)
    left, top, right, bottom = clip.box
    assert math.isclose(left, video.width - right, abs_tol=1e-6)
    assert math.isclose(top, video.height - bottom, abs_tol=1e-6)
    assert (clip.position, clip.sample, clip.flip) == (5, 5, False)
    if (frames - 1) * stride < video.num_frames:
        assert abs(clip.frames[0] - (video.num_frames - 1 - clip.frames[-1])) <= 1
    else:
        assert clip.frames[0] == 0


def test_a_center_clip_is_the_whole_short_side_at_that_size():
    clip = center_clip(0, VideoInfo(30, 320, 240, 25.0), ClipShape(4, 240, 240), stride=2, short_side=240, fps=0.0)
    assert clip.box == (40.0, 0.0, 280.0, 240.0)
    assert clip.frames == (12, 14, 16, 18)


def test_draws_are_pinned():
    """Another release of numpy or of this code must not change which clips a run sees."""
    clip = clip_at(make_step(), 1_000_003, VideoInfo(300, 340, 256, 30.0), seed=7)
    assert clip.frames == (103, 109, 115, 121, 127, 133, 139, 145)
    assert clip.box == pytest.approx((48.643877866171, 54.86635428852318, 239.79054453283769, 246.01302095518986))
    assert clip.flip is True


def test_position_and_seed_decide_each_clip():
    video = VideoInfo(300, 340, 256, 30.0)
    clips = {clip_at(make_step(), position, video, seed=seed) for position in range(200) for seed in range(3)}
    assert len({(clip.frames, clip.box) for clip in clips}) == 600


def test_draws_are_uniform():
    video, step = VideoInfo(100, 340, 256, 30.0), make_step(frames=4, stride=(1, 4), jitter=(128, 131))
    clips = [clip_at(step, position, video) for position in range(8000)]
    sides = Counter(round(112 / (clip.box[3] - clip.box[1]) * 256) for clip in clips)
    strides = Counter(clip.frames[1] - clip.frames[0] for clip in clips)
    assert sorted(sides) == [128, 129, 130, 131] and sorted(strides) == [1, 2, 3, 4]
    assert all(abs(count - 2000) < 200 for count in [*sides.values(), *strides.values()])  # five standard deviations
    assert abs(sum(clip.flip for clip in clips) - 4000) < 250
    starts = np.array([clip.frames[0] / (100 - 3 * (clip.frames[1] - clip.frames[0])) for clip in clips])
    across = np.array([clip.box[0] / (340 - (clip.box[2] - clip.box[0])) for clip in clips])
    down = np.array([clip.box[1] / (256 - (clip.box[3] - clip.box[1])) for clip in clips])
    for share in (starts, across, down):
        assert np.abs(np.histogram(share, bins=4, range=(0, 1))[0] - 2000).max() < 250
    assert np.abs(np.corrcoef([starts, across, down]) - np.eye(3)).max() < 0.06
    first = Counter(clip.frames[0] for clip in clips if clip.frames[1] - clip.frames[0] == 4)
    assert min(first) == 0 and max(first) == 87


def test_flip_can_be_off():
    video = VideoInfo(100, 340, 256, 30.0)
    assert not any(clip_at(make_step(), position, video, flip=False).flip for position in range(50))


def test_the_stride_counts_in_the_asked_rate():
    video, step = VideoInfo(300, 340, 256, 50.0), make_step(frames=5, stride=(2, 2))
    assert set(np.diff(clip_at(step, 1, video, fps=25.0).frames)) == {4}
    slow = clip_at(step, 1, VideoInfo(300, 340, 256, 20.0), fps=25.0)
    assert slow.frames[-1] - slow.frames[0] in (6, 7)


def test_a_short_video_repeats_its_last_frame():
    clip = clip_at(make_step(frames=6, stride=(3, 3)), 9, VideoInfo(7, 340, 256, 30.0))
    assert clip.frames == (0, 3, 6, 6, 6, 6)


def test_a_window_larger_than_the_video_enlarges_it():
    wide = center_clip(0, VideoInfo(9, 100, 400, 25.0), ClipShape(1, 64, 128), stride=1, short_side=64, fps=0.0)
    assert wide.box == (0.0, 175.0, 100.0, 225.0)
