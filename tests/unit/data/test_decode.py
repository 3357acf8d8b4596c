import dataclasses
import itertools
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mgray.data.clip import ClipSpec, VideoInfo, Views, view_clips
from mgray.data.decode import clips
from mgray.data.decode.clips import decode_clip, decode_frames
from mgray.data.decode.encode import encode_frames
from mgray.data.decode.source_file import SourceFile
from mgray.data.decode.transcode import level_size, transcode
from mgray.data.shards.packets import StoredVideo
from mgray.errors import VideoError
from mgray.plan import ClipShape
from tests.support.videos import (
    cut_off,
    empty_clip,
    moving,
    psnr,
    rotated,
    sequential,
    whole_clip,
    write_audio,
    write_bt709,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    encode_frames(str(folder / "plain.mp4"), moving(75))
    return folder / "plain.mp4"


@pytest.fixture(scope="module")
def stored(source) -> StoredVideo:
    return at_level(str(source), 256)


def at_level(path: str, side: int) -> StoredVideo:
    video = transcode(path, (side,)).levels[0]
    assert video is not None
    return video


def decoded(video: StoredVideo, spec: ClipSpec | None = None) -> np.ndarray:
    spec = spec or whole_clip(video.source)
    out = empty_clip(spec)
    decode_clip(video, spec, out)
    return out


def in_order(video: StoredVideo) -> list[np.ndarray]:
    """Every packet through one decoder, as a file would be read."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = video.extradata
    frames = []
    for index in range(len(video.pts)):
        frames += decoder.decode(av.Packet(bytes(video.packet(index))))
    return [frame.to_ndarray() for frame in frames + decoder.decode(None)]


def test_the_stored_level_is_closed_groups_with_frames_that_can_be_left_out(stored):
    assert sorted(stored.pts) == list(range(75))
    assert list(stored.pts[stored.key]) == [0, 32, 64]
    assert list(stored.pts) != sorted(stored.pts)  # B frames
    assert stored.reference[stored.key].all() and stored.reference.mean() < 0.3
    starts = np.flatnonzero(stored.key)
    for first, last in itertools.pairwise([*starts, len(stored.pts)]):
        assert sorted(stored.pts[first:last]) == list(range(stored.pts[first], stored.pts[first] + last - first))


def test_any_frames_equal_those_of_sequential_decoding(stored):
    reference = in_order(stored)
    rng = np.random.default_rng(0)
    wanted = [[int(i)] for i in range(75)]
    wanted += [sorted(rng.choice(75, rng.integers(1, 20), replace=False).tolist()) for _ in range(100)]
    for frames in wanted:
        got = dict(decode_frames(stored, frames))
        assert list(got) == frames
        for index, frame in got.items():
            np.testing.assert_array_equal(frame.to_ndarray(), reference[index])


def test_only_needed_packets_are_decoded(stored, monkeypatch):
    fed = []
    packet = StoredVideo.packet
    monkeypatch.setattr(StoredVideo, "packet", lambda video, index: fed.append(index) or packet(video, index))
    list(decode_frames(stored, [40]))
    assert list(stored.pts[fed]) == [32, 40]
    fed.clear()
    list(decode_frames(stored, [34, 66]))
    assert list(stored.pts[fed]) == [32, 40, 34, 64, 72, 66]


def test_the_stored_level_looks_like_the_source(source, stored):
    assert stored.source == VideoInfo(75, 96, 64, 25.0)
    assert psnr(decoded(stored), sequential(source)) > 28  # sensor noise is the limit: it is what the codec drops
    smooth = moving(20, seed=5) // 2 + 64
    smooth = np.stack([np.asarray(Image.fromarray(f).resize((192, 128), Image.BICUBIC)) for f in smooth])
    path = source.with_name("smooth.mp4")
    encode_frames(str(path), smooth, crf=5)
    assert psnr(decoded(at_level(str(path), 256)), smooth) > 37


def test_repeated_frames_and_flips(stored):
    plain = decoded(stored, whole_clip(stored.source, (3, 3, 9, 30, 30)))
    flipped = decoded(stored, whole_clip(stored.source, (3, 3, 9, 30, 30), flip=True))
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])
    np.testing.assert_array_equal(plain[0], plain[1])
    everything = decoded(stored)
    np.testing.assert_array_equal(plain, everything[[3, 3, 9, 30, 30]])


@pytest.mark.parametrize("pixels", [1, 96 * 64 * 7, 96 * 64 * 74])
def test_what_is_too_large_to_be_converted_at_once_is_the_same_in_pieces(stored, monkeypatch, pixels):
    """FFmpeg takes pictures of up to 255 million pixels."""
    specs = [
        whole_clip(stored.source, flip=True),
        ClipSpec(0, 0, ClipShape(75, 24, 20), tuple(range(75)), (3.0, 5.0, 40.0, 51.0), False),
    ]
    whole = [decoded(stored, spec) for spec in specs]
    monkeypatch.setattr(clips, "_PICTURE_PIXELS", pixels)
    for spec, expected in zip(specs, whole, strict=True):
        np.testing.assert_array_equal(decoded(stored, spec), expected)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(source, degrees):
    path = rotated(source, degrees, source.with_name(f"turned{degrees}.mp4"))
    video = at_level(str(path), 256)
    expected = np.rot90(sequential(source), -degrees // 90, axes=(1, 2))
    assert (video.source.height, video.source.width) == expected.shape[1:3]
    assert psnr(decoded(video), expected) > 28


def test_larger_videos_are_reduced_and_rotated_ones_too(folder):
    path = folder / "large.mp4"
    frames = np.repeat(np.repeat(moving(6, 80, 60), 4, axis=1), 4, axis=2)
    encode_frames(str(path), frames, crf=8)
    video = at_level(str(path), 60)
    assert (video.width, video.height) == (80, 60) and video.source == VideoInfo(6, 320, 240, 25.0)
    small = np.stack([np.asarray(Image.fromarray(f).resize((80, 60), Image.BOX)) for f in frames])
    spec = ClipSpec(0, 0, ClipShape(6, 60, 80), tuple(range(6)), (0.0, 0.0, 320.0, 240.0), False)
    assert psnr(decoded(video, spec), small) > 27
    turned = at_level(str(rotated(path, 90, folder / "large90.mp4")), 60)
    assert (turned.width, turned.height) == (60, 80) and turned.source == VideoInfo(6, 240, 320, 25.0)


def test_crops_match_an_antialiased_resize_of_the_whole_frame(folder):
    import torch
    from torch.nn.functional import interpolate

    smooth = np.stack([np.asarray(Image.fromarray(f).resize((320, 240), Image.BICUBIC)) for f in moving(6)])
    encode_frames(str(folder / "smooth.mp4"), smooth, crf=8)
    video = at_level(str(folder / "smooth.mp4"), 256)
    whole = decoded(video, whole_clip(video.source, (4,)))
    frame = torch.from_numpy(whole).permute(0, 3, 1, 2).float()
    for short_side, size in ((120, 112), (180, 160), (60, 56)):
        spec = next(
            view_clips(0, video.source, ClipShape(1, size, size), Views(), stride=1, short_side=short_side, fps=0.0)
        )
        spec = ClipSpec(0, 0, spec.shape, (4,), spec.box, False)
        wide = short_side * 4 // 3
        resized = interpolate(frame, size=(short_side, wide), mode="bilinear", antialias=True)  # as torchvision does
        top, left = (short_side - size) // 2, (wide - size) // 2
        expected = resized[:, :, top : top + size, left : left + size].permute(0, 2, 3, 1).numpy()
        assert psnr(decoded(video, spec), expected) > 40


def test_a_crop_of_a_reduced_level_is_where_it_was_in_the_source(folder):
    frames = np.zeros((3, 240, 320, 3), np.uint8)
    frames[:, 60:120, 160:240] = 255
    encode_frames(str(folder / "square.mp4"), frames)
    video = at_level(str(folder / "square.mp4"), 120)
    spec = ClipSpec(0, 0, ClipShape(1, 60, 80), (0,), (160.0, 60.0, 240.0, 120.0), False)
    assert decoded(video, spec)[0, 2:-2, 2:-2].min() > 240
    left = ClipSpec(0, 0, ClipShape(1, 60, 80), (0,), (80.0, 60.0, 160.0, 120.0), False)
    assert decoded(video, left)[0, :, :-2].max() < 16


@pytest.mark.parametrize(("width", "height"), [(97, 65), (95, 64), (21, 13)])
def test_odd_sizes(folder, width, height):
    path = folder / f"odd{width}.mkv"
    frames = moving(5, width, height)
    encode_frames(str(path), frames, codec="ffv1", pixel_format="yuv444p")
    video = at_level(str(path), 256)
    assert video.source == VideoInfo(5, width, height, 25.0)
    assert (video.width, video.height) == (width // 2 * 2, height // 2 * 2)
    assert psnr(decoded(video), frames) > 21


def test_variable_frame_rate_keeps_each_frame_once(folder):
    frames = moving(12)
    times = [0, 1, 2, 5, 6, 7, 20, 21, 22, 23, 40, 44]
    encode_frames(str(folder / "vfr.mp4"), frames, times=times)
    video = at_level(str(folder / "vfr.mp4"), 256)
    assert video.source.num_frames == 12 and video.source.fps == pytest.approx(25 * 11 / 44, rel=0.01)
    assert psnr(decoded(video), frames) > 27


def test_time_stamps_may_start_below_zero_or_late(folder):
    frames = moving(10)
    for name, first in (("early.mkv", -3), ("late.mkv", 100)):
        encode_frames(str(folder / name), frames, times=range(first, first + 10))
        video = at_level(str(folder / name), 256)
        assert video.source.num_frames == 10 and video.source.fps == pytest.approx(25, rel=0.02)
        assert psnr(decoded(video), frames) > 27


def test_edit_lists_and_missing_time_stamps_give_what_a_sequential_reader_gives(folder):
    frames = moving(20)
    encode_frames(str(folder / "edited.mp4"), frames, times=range(-6, 14))  # the mp4 header hides what is before 0
    encode_frames(str(folder / "bare.h264"), frames)
    for name in ("edited.mp4", "bare.h264"):
        expected = sequential(folder / name)
        video = at_level(str(folder / name), 256)
        assert video.source.num_frames == len(expected)
        assert video.source.fps == pytest.approx(25)
        assert psnr(decoded(video), expected) > 27
    assert len(sequential(folder / "edited.mp4")) < 20


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("ten.mp4", "libx264", "yuv420p10le"),
        ("full.mp4", "libx264", "yuvj420p"),
        ("mpeg.avi", "mpeg4", "yuv420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("grey.mkv", "ffv1", "gray"),
    ],
)
def test_other_formats(folder, name, codec, pixel_format):
    frames = moving(10)
    if pixel_format == "gray":
        frames = np.repeat(frames.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    encode_frames(str(folder / name), frames, codec=codec, pixel_format=pixel_format)
    video = at_level(str(folder / name), 256)
    assert video.source.num_frames == 10
    got, expected = decoded(video), sequential(folder / name)
    assert psnr(got, expected) > 28
    assert abs(float(got.mean()) - float(expected.mean())) < 2.5


def test_bt709_sources_keep_their_colours(folder):
    frames = np.zeros((4, 64, 96, 3), np.uint8)
    for column, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]):
        frames[:, :, column * 24 : column * 24 + 24] = colour
    video = at_level(str(write_bt709(folder / "hd.mp4", frames)), 256)
    got = decoded(video)
    for column in range(4):
        middle = got[0, 20:44, column * 24 + 8 : column * 24 + 16].reshape(-1, 3).mean(0)
        assert np.abs(middle - frames[0, 0, column * 24 + 8]).max() < 7  # the wrong matrix is off by 20


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_short_videos(folder, count):
    frames = moving(count)
    encode_frames(str(folder / f"short{count}.mp4"), frames)
    video = at_level(str(folder / f"short{count}.mp4"), 256)
    assert video.source.num_frames == count
    assert video.source.fps == pytest.approx(25)
    spec = next(view_clips(0, video.source, ClipShape(8, 32, 32), Views(), stride=4, short_side=64, fps=0.0))
    clip = decoded(video, spec)
    np.testing.assert_array_equal(clip[-1], decoded(video, ClipSpec(0, 0, ClipShape(1, 32, 32), spec.frames[-1:], spec.box, False))[0])  # fmt: skip
    assert psnr(decoded(video), frames) > 27


@pytest.mark.parametrize(
    ("width", "height", "side", "expected"),
    [(340, 256, 256, (340, 256)), (1920, 1080, 256, (456, 256)), (1080, 1920, 256, (256, 456)), (145, 97, 256, (144, 96)), (640, 480, 181, (242, 180)), (1, 1, 256, (2, 2))],
)  # fmt: skip
def test_level_size(width, height, side, expected):
    assert level_size(width, height, side) == expected


def check_refused(path: Path, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        at_level(str(path), 256)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files_are_named(folder, source):
    check_refused(folder / "nowhere.mp4", "does not exist")
    (folder / "nothing.mp4").touch()
    check_refused(folder / "nothing.mp4", "is empty")
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    check_refused(folder / "noise.mp4", "is no video that can be opened")
    (folder / "headless.mp4").write_bytes(source.read_bytes()[:5000])
    check_refused(folder / "headless.mp4", "is no video that can be opened")
    check_refused(write_audio(folder / "sound.mp4"), "holds no video stream")
    check_refused(folder, "is no video that can be opened")


def test_a_video_that_is_cut_off_is_refused(folder, source):
    for share in (0.5, 0.8):
        with pytest.raises(VideoError, match=r"cut off|does not decode"):
            at_level(str(cut_off(source, folder / f"cut{share}.mp4", share)), 256)


def test_damaged_packets_are_refused(stored):
    damaged = dataclasses.replace(stored, data=memoryview(bytes(len(stored.data))))
    with pytest.raises(VideoError, match="stored"):
        decoded(damaged)


def test_a_clip_that_takes_too_long_is_given_up(stored):
    spec = whole_clip(stored.source)
    with pytest.raises(VideoError, match=r"does not decode within 0 s .75 frames were missing still.") as caught:
        decode_clip(stored, spec, empty_clip(spec), limit_s=0.0)
    assert "\n" not in str(caught.value)
    frames = decode_frames(stored, [3, 40, 70], limit_s=0.02)
    assert next(frames)[0] == 3
    begun = time.thread_time()
    while time.thread_time() - begun < 0.02:
        pass
    with pytest.raises(VideoError, match="2 frames were missing still"):
        next(frames)
    assert len(list(decode_frames(stored, [3, 40, 70]))) == 3


def test_waiting_for_a_core_does_not_count(stored):
    frames = decode_frames(stored, [3, 40, 70], limit_s=0.1)
    shown = []
    for number, _ in frames:
        shown.append(number)
        time.sleep(0.11)
    assert shown == [3, 40, 70]


def test_what_is_done_with_frames_is_no_decoding(source):
    shown = 0
    with SourceFile(str(source), 0.3) as file:
        for _ in file.frames():
            shown += 1
            busy = time.thread_time()
            while time.thread_time() - busy < 0.01:
                pass
    assert shown == 75


def test_the_same_file_gives_the_same_packets(source, stored):
    for _ in range(5):
        again = at_level(str(source), 256)
        assert bytes(again.data) == bytes(stored.data) and np.array_equal(again.offsets, stored.offsets)
