import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from mgray.data.decode.clips import decode_clip, decode_frames
from mgray.data.decode.encode import encode_frames
from mgray.data.decode.passthrough import index_packets
from mgray.data.decode.transcode import transcode
from mgray.data.shards.packets import StoredVideo
from mgray.data.storage import MappedFile
from tests.support.videos import empty_clip, moving, psnr, rotated, sequential, whole_clip


def indexed(path: Path) -> StoredVideo:
    """A file's packet table, with the file's bytes at hand as a shard set gives them."""
    video = index_packets(str(path)).levels[0]
    assert video is not None
    return dataclasses.replace(video, data=MappedFile(video.file).view) if video.file else video


def in_order(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def open_gop(path: Path) -> Path:
    """A file in which frames before a key frame refer to the GOP before it."""
    with av.open(str(path), "w") as container:
        options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = 64, 96
        stream.pix_fmt = "yuv420p"
        for index, array in enumerate(moving(60)):
            frame = VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write(folder: Path, name: str, codec: str, pixel_format: str, times: list[int] | None = None) -> Path:
    frames = moving(50 if times is None else len(times))
    encode_frames(str(folder / name), frames, codec=codec, pixel_format=pixel_format, times=times)
    return folder / name


MAKERS = {
    "h264.mp4": lambda folder: write(folder, "h264.mp4", "libx264", "yuv420p"),
    "turned.mp4": lambda folder: rotated(write(folder, "plain.mp4", "libx264", "yuv420p"), 90, folder / "turned.mp4"),
    "vfr.mp4": lambda folder: write(folder, "vfr.mp4", "libx264", "yuv420p", [0, 1, 2, 5, 6, 7, 8, 20, 21, 22, 23, 30]),
    "deep.mp4": lambda folder: write(folder, "deep.mp4", "libx264", "yuv420p10le"),
    "full.mp4": lambda folder: write(folder, "full.mp4", "libx264", "yuvj420p"),
    "fine.mp4": lambda folder: write(folder, "fine.mp4", "libx264", "yuv444p"),
    "old.avi": lambda folder: write(folder, "old.avi", "mpeg4", "yuv420p"),
    "stills.mov": lambda folder: write(folder, "stills.mov", "png", "rgb24"),
    "open.mp4": lambda folder: open_gop(folder / "open.mp4"),
    "matroska.mkv": lambda folder: write(folder, "matroska.mkv", "libx264", "yuv420p"),
    "upside-down.avi": lambda folder: write(folder, "upside-down.avi", "amv", "yuvj420p"),
    "vp8.webm": lambda folder: write(folder, "vp8.webm", "libvpx", "yuv420p"),
    "web.webm": lambda folder: write(folder, "web.webm", "libvpx-vp9", "yuv420p"),
}
ENCODED_ANEW = {"old.avi", "upside-down.avi"}
"""MPEG-4 says only at the file's start how to decode the rest; AMV gives its rows from the bottom to the top."""


@pytest.mark.parametrize("name", MAKERS)
def test_any_frames_equal_those_of_sequential_decoding(tmp_path, name):
    path = MAKERS[name](tmp_path)
    video, reference = indexed(path), in_order(path)
    assert bool(video.file) == (name not in ENCODED_ANEW)
    assert video.source == transcode(str(path), (256,)).levels[0].source and video.source.num_frames == len(reference)
    rng = np.random.default_rng(0)
    wanted = [[i] for i in range(len(reference))]
    wanted += [sorted(rng.choice(len(reference), rng.integers(1, 9), replace=False).tolist()) for _ in range(40)]
    for frames in wanted:
        got = dict(decode_frames(video, frames))
        assert list(got) == frames
        if video.file:
            assert all(np.array_equal(frame.to_ndarray(), reference[index]) for index, frame in got.items())


@pytest.mark.parametrize("name", MAKERS)
def test_clips_look_like_the_source(tmp_path, name):
    path = MAKERS[name](tmp_path)
    video, expected = indexed(path), sequential(path)
    if name == "turned.mp4":
        expected = np.rot90(expected, -1, axes=(1, 2))
    for flip in (False, True):
        spec = whole_clip(video.source, flip=flip)
        clip = empty_clip(spec)
        decode_clip(video, spec, clip)
        assert psnr(clip[:, :, ::-1] if flip else clip, expected) > (38 if video.file else 28)


def test_frames_that_nothing_refers_to_are_skipped(tmp_path):
    video = indexed(MAKERS["h264.mp4"](tmp_path))
    assert not video.reference.all() and video.reference[video.key].all()
    wanted = list(range(0, 48, 8))
    assert len(video.needed(wanted)) < 0.8 * len(video.pts)


def test_a_frame_before_its_key_frame_is_decoded_from_the_gop_before(tmp_path):
    video = indexed(MAKERS["open.mp4"](tmp_path))
    keys = np.flatnonzero(video.key)
    leading = [
        int(video.pts[i])
        for key in keys[1:]
        for i in range(key + 1, len(video.pts))
        if 0 <= video.pts[i] < video.pts[key]
    ]
    assert leading
    first = video.needed([leading[0]])[0]
    assert video.key[first] and video.pts[first] < leading[0]


def test_the_table_is_small(tmp_path):
    video = index_packets(str(MAKERS["h264.mp4"](tmp_path))).levels[0]
    assert video is not None and not len(video.data)
    assert video.to_batch().nbytes < 40 * len(video.pts) + 1000
