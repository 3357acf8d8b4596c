import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgray.data.clip import ClipSpec, VideoInfo, Views, clip_span, sliding_clips, train_clip, view_clips
from mgray.errors import ConfigError
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


def only_view(sample: int, video: VideoInfo, shape: ClipShape, **options) -> ClipSpec:
    (clip,) = view_clips(sample, video, shape, Views(), **options)
    return clip


@given(videos, st.integers(1, 64), st.integers(8, 256), st.integers(8, 256), st.integers(1, 16))
def test_a_single_view_is_central(video, frames, height, width, stride):
    clip = only_view(5, video, ClipShape(frames, height, width), stride=stride, short_side=256, fps=0.0)
    check_geometry(clip, video)
    left, top, right, bottom = clip.box
    assert math.isclose(left, video.width - right, abs_tol=1e-6)
    assert math.isclose(top, video.height - bottom, abs_tol=1e-6)
    assert (clip.position, clip.sample, clip.flip) == (5, 5, False)
    if (frames - 1) * stride < video.num_frames:
        assert abs(clip.frames[0] - (video.num_frames - 1 - clip.frames[-1])) <= 1
    else:
        assert clip.frames[0] == 0


def test_a_single_view_is_the_whole_short_side_at_that_size():
    clip = only_view(0, VideoInfo(30, 320, 240, 25.0), ClipShape(4, 240, 240), stride=2, short_side=240, fps=0.0)
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
    wide = only_view(0, VideoInfo(9, 100, 400, 25.0), ClipShape(1, 64, 128), stride=1, short_side=64, fps=0.0)
    assert wide.box == (0.0, 175.0, 100.0, 225.0)


@given(videos, st.integers(1, 64), st.integers(8, 256), st.integers(1, 16), st.integers(1, 12), st.sampled_from([1, 3]))
def test_views_lie_within_their_video_in_order(video, frames, side, stride, clips, crops):
    views = Views(clips=clips, crops=crops)
    found = [*view_clips(5, video, ClipShape(frames, side, side), views, stride=stride, short_side=256, fps=0.0)]
    assert [clip.position for clip in found] == [5 * clips * crops + i for i in range(clips * crops)]
    for clip in found:
        check_geometry(clip, video)
        assert (clip.sample, clip.flip) == (5, False)
    starts = [clip.frames[0] for clip in found]
    assert starts == sorted(starts)
    assert all(found[i].frames == found[i - i % crops].frames for i in range(len(found)))
    assert {clip.box for clip in found} == {clip.box for clip in found[:crops]}
    room = video.num_frames - (frames - 1) * stride
    if clips > 1 and room > 0:
        assert found[0].frames[0] == 0 and found[-1].frames[-1] == video.num_frames - 1
        gaps = np.diff(starts[::crops])
        assert gaps.max() - gaps.min() <= 1
        assert all(set(np.diff(clip.frames)) <= {stride} for clip in found)


@given(videos, st.integers(1, 32), st.integers(8, 256), st.sampled_from([0.0, 12.5, 30.0]), st.integers(0, 5))
def test_the_middle_view_is_the_single_one(video, frames, side, fps, more):
    shape, options = ClipShape(frames, side, side), {"stride": 3, "short_side": 200, "fps": fps}
    centre = only_view(7, video, shape, **options)
    views = Views(clips=2 * more + 1, crops=3)
    middle = [*view_clips(7, video, shape, views, **options)][3 * more + 1]
    assert (middle.frames, middle.box) == (centre.frames, centre.box)


def test_crops_lie_along_the_longer_side():
    options = {"stride": 2, "short_side": 120, "fps": 0.0}
    shape, views = ClipShape(4, 112, 112), Views(clips=2, crops=3)
    wide = [*view_clips(0, VideoInfo(30, 320, 240, 25.0), shape, views, **options)]
    assert [clip.box for clip in wide[:3]] == [(0, 8, 224, 232), (48, 8, 272, 232), (96, 8, 320, 232)]
    assert [clip.frames for clip in wide[::3]] == [(0, 2, 4, 6), (23, 25, 27, 29)]
    tall = [*view_clips(0, VideoInfo(30, 240, 320, 25.0), shape, views, **options)]
    assert [clip.box for clip in tall[:3]] == [(8, 0, 232, 224), (8, 48, 232, 272), (8, 96, 232, 320)]


@pytest.mark.parametrize(
    "text", ["10", "0x3", "2x2", "x3", "3x", "-1x3", "3X3", "1x1x1", "", " 1x1", "1x0", "9999999x1"]
)
def test_views_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match=re.escape(f"views = '{text}': is no CLIPSxCROPS")):
        Views.parse(text)


def test_views_are_written_as_they_are_read():
    assert str(Views.parse("10x3")) == "10x3" and len(Views.parse("10x3")) == 30
    assert Views.parse("1x1") == Views()


@given(videos, st.integers(1, 32), st.integers(1, 8), st.sampled_from([0.0, 25.0]), st.floats(0, 20))
def test_sliding_clips_cover_a_video(video, frames, stride, fps, every_s):
    shape = ClipShape(frames, 64, 64)
    clips = sliding_clips(video, shape, stride=stride, short_side=80, fps=fps, every_s=every_s)
    for number, clip in enumerate(clips):
        check_geometry(clip, video)
        assert (clip.position, clip.sample, clip.flip) == (number, 0, False)
    starts = [clip.frames[0] for clip in clips]
    span = clip_span(video, shape, stride=stride, fps=fps)
    assert starts[0] == 0 and starts == sorted(set(starts))
    if span <= video.num_frames:
        assert abs(starts[-1] + span - video.num_frames) < 1.001
    else:
        assert len(clips) == 1
    step = max(1.0, every_s * video.fps if every_s else span)
    assert all(gap <= step + 1 for gap in np.diff(starts))


def test_sliding_clips_begin_at_even_times():
    def starts(every_s: float, num_frames: int = 100) -> list[int]:
        video = VideoInfo(num_frames, 320, 240, 25.0)
        clips = sliding_clips(video, ClipShape(8, 64, 64), stride=2, short_side=80, fps=0.0, every_s=every_s)
        return [clip.frames[0] for clip in clips]

    assert starts(1.0) == [0, 25, 50, 75, 84]
    assert starts(0.0) == [0, 16, 32, 48, 64, 80, 84]
    assert starts(0.0, 32) == [0, 16]
    assert starts(1.0, 10) == [0]
    assert starts(1e-9, 18) == [0, 1, 2]


@given(steps(), positions, seeds, videos)
def test_segments_cover_the_whole_video_with_a_frame_of_each(step, position, seed, video):
    clip = train_clip(step, position, 3, video, seed=seed, fps=0.0, flip=True, sampling="segments")
    check_geometry(clip, video)
    size = (video.num_frames - 1) / step.shape.frames
    for number, frame in enumerate(clip.frames):
        assert round(size * number) <= frame <= round(size * (number + 1))
    plain = train_clip(step, position, 3, video, seed=seed, fps=0.0, flip=True)
    assert (clip.box, clip.flip) == (plain.box, plain.flip)  # the same draws


def test_frames_of_segments_are_all_of_them_alike_in_training_and_the_middle_one_otherwise():
    video = VideoInfo(41, 320, 240, 25.0)
    step = make_step(frames=4, crop=112, jitter=(128, 160))
    seen = [
        train_clip(step, position, 0, video, seed=1, fps=0.0, flip=False, sampling="segments").frames
        for position in range(3000)
    ]
    for number in range(4):
        counts = Counter(frames[number] for frames in seen)
        assert sorted(counts) == list(range(10 * number, 10 * number + 11))
        assert max(counts.values()) < 1.5 * 3000 / 11
    options = {"stride": 2, "short_side": 128, "fps": 0.0}
    shape = ClipShape(4, 112, 112)
    (centre,) = view_clips(0, video, shape, Views(), **options, sampling="segments")
    assert centre.frames == (5, 15, 25, 35)
    # PySlowFast: (round(44/3 * i) + round(44/3 * (i + 1))) // 2
    (thirds,) = view_clips(
        0, VideoInfo(45, 320, 240, 25.0), ClipShape(3, 112, 112), Views(), **options, sampling="segments"
    )
    assert thirds.frames == ((0 + 15) // 2, (15 + 29) // 2, (29 + 44) // 2)
    several = [clip.frames for clip in view_clips(0, video, shape, Views(clips=3), **options, sampling="segments")]
    assert several == [(0, 10, 20, 30), (5, 15, 25, 35), (10, 20, 30, 40)]


def test_short_sides_that_are_uniform_in_their_inverse():
    """PySlowFast's INV_UNIFORM_SAMPLE: 1 / side is uniform between 1/320 and 1/256."""
    video = VideoInfo(30, 340, 256, 25.0)
    step = make_step(frames=4, crop=224, jitter=(256, 320))
    means = {}
    for jitter in ("uniform", "inverse"):
        boxes = [
            train_clip(step, position, 0, video, seed=1, fps=0.0, flip=False, jitter=jitter) for position in range(4000)
        ]
        sides = np.array([256 * 224 / (clip.box[3] - clip.box[1]) for clip in boxes])
        assert sides.min() == pytest.approx(256, abs=1) and sides.max() == pytest.approx(320, abs=1)
        means[jitter] = sides.mean()
    assert means["uniform"] == pytest.approx(288, abs=1.5)
    assert means["inverse"] == pytest.approx(math.log(320 / 256) / (1 / 256 - 1 / 320), abs=1.5)  # 285.6
