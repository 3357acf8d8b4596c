"""Files that are damaged, disguised or made to do harm: each gets a VideoError that says why, and nothing else happens."""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mgray.data import ingest
from mgray.data.clip import ClipSpec
from mgray.data.decode import source_file
from mgray.data.decode.clips import decode_clip, decode_frames
from mgray.data.decode.encode import encode_frames
from mgray.data.decode.limits import MAX_SIDE
from mgray.data.decode.passthrough import index_packets
from mgray.data.decode.transcode import transcode
from mgray.data.ingest_part import encode_part
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import MgrayError, VideoError
from mgray.plan import ClipShape
from tests.support.shards import write_shards
from tests.support.videos import cut_off, empty_clip, moving, write_audio

pytestmark = pytest.mark.timeout(120)

READERS = {"transcode": lambda path: transcode(path, (16,)), "index_packets": index_packets}
FRAMES = 12


def small(path: Path, width: int = 32, codec: str = "libx264") -> Path:
    encode_frames(str(path), moving(FRAMES, width, 32), codec=codec)
    return path


def truncated(path: Path) -> None:
    encode_frames(str(path.with_name("long.mp4")), moving(60, 32, 32))
    cut_off(path.with_name("long.mp4"), path, 0.7)


def headless(path: Path) -> None:
    path.write_bytes(small(path).read_bytes()[:-400])


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def wide(path: Path) -> None:
    encode_frames(str(path.with_suffix(".mkv")), moving(2, MAX_SIDE + 16, 16), codec="ffv1")
    path.with_suffix(".mkv").rename(path)


def false_header(path: Path) -> None:
    encode_frames(str(path.with_suffix(".avi")), moving(3, 32, 32), codec="ffv1")
    content = bytearray(path.with_suffix(".avi").read_bytes())
    at = content.find(b"strf") + 12
    content[at : at + 8] = 2 * (65535).to_bytes(4, "little")
    path.with_suffix(".avi").unlink()
    path.write_bytes(content)


def changing(path: Path) -> None:
    parts = [small(path.with_name(f"{width}.h264"), width).read_bytes() for width in (32, 48)]
    path.write_bytes(b"".join(parts))


def image(kind: str, frames: int = 1):
    def write(path: Path) -> None:
        first, *others = [Image.fromarray(frame) for frame in moving(frames, 32, 32)]
        first.save(path, format=kind, **({"save_all": True, "append_images": others} if others else {}))

    return write


def ffconcat(path: Path) -> None:
    small(path.with_name("victim.mp4"))
    path.write_text("ffconcat version 1.0\nfile victim.mp4\n")


def hls(path: Path) -> None:
    small(path.with_name("victim.ts"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nvictim.ts\n#EXT-X-ENDLIST\n")


HOSTILE = {
    "truncated": (truncated, "cut off|does not decode"),
    "headless": (headless, "is no video that can be opened"),
    "no frames": (no_frames, "holds no frame|holds no video stream|is no video that can be opened"),
    "audio only": (write_audio, "holds no video stream"),
    "text": (lambda path: path.write_text("Not a video.\n" * 200), "is no video that can be opened"),
    "folder": (lambda path: path.mkdir(), "a folder, pipe or device"),
    "pipe": (lambda path: os.mkfifo(path), "a folder, pipe or device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a folder, pipe or device"),
    "dangling link": (lambda path: path.symlink_to(path.with_name("nothing")), "does not exist"),
    "wide": (wide, "has frames of 16400x16 pixels, more than 16384"),
    "false header": (false_header, "does not decode|has frames of"),
    "changing size": (changing, "changes its size from 32x32 to 48x32 at frame 12"),
    "empty": (lambda path: path.touch(), "is empty"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(20_000)), "is no video that can be opened"),
    "png": (image("PNG"), "is no video that can be opened .of another format"),
    "jpeg": (image("JPEG"), "is no video that can be opened .of another format"),
    "gif": (image("GIF", 5), "is no video that can be opened .of another format"),
    "ffconcat": (ffconcat, "is no video that can be opened .of another format"),
    "hls": (hls, "is no video that can be opened"),
}
NOT_LISTED = {"folder", "pipe", "device", "dangling link"}
"""What a folder of videos does not count among them."""


def check_refused(read, path: str, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        read(path)
    assert repr(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path, kind, reader):
    write, words = HOSTILE[kind]
    write(tmp_path / "clip.mp4")
    check_refused(READERS[reader], str(tmp_path / "clip.mp4"), words)


@pytest.mark.parametrize("reader", READERS)
def test_the_ending_of_a_name_does_not_matter(tmp_path, reader):
    for name in ("clip.avi", "clip", "clip.m3u8", "clip%03d.mov", "http:clip.mp4", "concat:a|b.mp4"):
        shutil.copy(small(tmp_path / "clip.mp4"), tmp_path / name)
        assert READERS[reader](str(tmp_path / name)).levels[0].source.num_frames == FRAMES


@pytest.mark.parametrize("reader", READERS)
def test_decoding_that_never_ends_is_given_up(tmp_path, monkeypatch, reader):
    small(tmp_path / "clip.mkv")
    monkeypatch.setattr(
        source_file, "time", SimpleNamespace(thread_time=itertools.count().__next__)
    )  # a second at each look
    read = {
        "transcode": lambda path: transcode(path, (16,), limit_s=5),
        "index_packets": lambda path: index_packets(path, limit_s=5),
    }[reader]
    check_refused(read, str(tmp_path / "clip.mkv"), "does not decode within 5 s")


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_takes_too_long_to_open_is_given_up(tmp_path, reader):
    path = small(tmp_path / "clip.mp4")
    read = {"transcode": lambda path, **limit: transcode(path, (16,), **limit)}.get(reader, READERS[reader])
    check_refused(lambda name: read(name, limit_s=0.0), str(path), "within the time that is allowed")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat"])
def test_a_playlist_opens_no_other_file_and_no_address(tmp_path, reader, name):
    small(tmp_path / "victim.mp4")
    small(tmp_path / "victim.ts")
    (tmp_path / name).write_text("ffconcat version 1.0\nfile victim.mp4\n")
    with av.open(str(tmp_path / name)) as container:  # what FFmpeg does unless it is told otherwise
        assert len(list(container.decode(video=0))) == FRAMES
    check_refused(READERS[reader], str(tmp_path / name), "is no video that can be opened .of another format")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/victim.ts"
        for content in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXTINF:9,\nvictim.ts\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{address}'\nfile victim.mp4\n",
        ):
            (tmp_path / name).write_text(content)
            check_refused(READERS[reader], str(tmp_path / name), "is no video that can be opened")
        check_refused(READERS[reader], address, "does not exist")
        with pytest.raises(TimeoutError):  # nobody called
            server.accept()
    check_refused(READERS[reader], f"concat:{tmp_path / 'victim.mp4'}", "does not exist")


@pytest.mark.parametrize("levels", [(16,), ingest.SOURCE])
def test_ingest_lists_hostile_files_and_stores_the_others(tmp_path, monkeypatch, levels):
    for kind, (write, _) in HOSTILE.items():
        aside = tmp_path / "aside" / kind
        aside.mkdir(parents=True)
        write(aside / "clip.mp4")
        folder = tmp_path / "videos" / "train" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        (aside / "clip.mp4").rename(folder / f"{kind}.mp4")
    for number in range(4):
        split = tmp_path / "videos" / ("train" if number else "val") / "a"
        split.mkdir(parents=True, exist_ok=True)
        small(split / f"good{number}.mp4")

    def run(folder, parts, num_workers):  # as Ray does it, in this process
        for part in parts:
            yield from encode_part(folder, part)

    monkeypatch.setattr(ingest, "_run", run)
    manifest = ingest.ingest(str(tmp_path / "videos"), str(tmp_path / "shards"), levels=levels, max_broken=1.0)
    broken = {item.path: item.reason for item in manifest.broken}
    assert broken.keys() == {f"train/a/{kind}.mp4" for kind in HOSTILE.keys() - NOT_LISTED}
    assert all(reason and "\n" not in reason for reason in broken.values())
    assert sum(manifest.counts.values()) == 4


def fuzz(cases: int):
    return settings(
        max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


CHANGES = st.binary(min_size=4, max_size=24)
"""Up to six changed bytes, four bytes for each: which, and by what. One draw, since drawing costs more than decoding."""


def flipped(content: bytes, changes: bytes, head: int = 300) -> bytes:
    """The content with some bytes changed: anywhere, or among its first `head`."""
    damaged = bytearray(content)
    for start in range(0, len(changes) - 3, 4):
        place = int.from_bytes(changes[start : start + 3], "big")
        span = len(damaged) if place % 2 else min(len(damaged), head)
        damaged[(place >> 1) % span] ^= changes[start + 3] or 1
    return bytes(damaged)


def outcome(read) -> None:
    """A result or an error of ours; anything else goes through."""
    try:
        read()
    except MgrayError as error:
        assert "\n" not in str(error)


def test_fuzz_of_stored_packets(tmp_path):
    import torch  # noqa: F401  takes seconds, which are no case's

    video = transcode(str(small(tmp_path / "clip.mp4")), (32,)).levels[0]
    assert video is not None
    content = bytes(video.data)

    @fuzz(900)
    @given(CHANGES, st.binary(max_size=4), st.integers(1, 2**FRAMES - 1), st.booleans())
    def check(changes, header, frames, clip):
        damaged = dataclasses.replace(
            video, data=memoryview(flipped(content, changes)), extradata=flipped(video.extradata, header)
        )
        wanted = [number for number in range(FRAMES) if frames >> number & 1]
        spec = ClipSpec(0, 0, ClipShape(len(wanted), 16, 16), tuple(wanted), (2.0, 3.0, 30.0, 29.0), len(wanted) > 6)
        outcome(lambda: decode_clip(damaged, spec, empty_clip(spec)) if clip else list(decode_frames(damaged, wanted)))

    check()


@pytest.mark.parametrize(
    ("name", "codec"), [("clip.mp4", "libx264"), ("clip.avi", "mpeg4"), ("clip.mkv", "libx264"), ("clip.ts", "mpeg2video"), ("clip.webm", "libvpx")]
)  # fmt: skip
def test_fuzz_of_source_files(tmp_path, name, codec):
    path = small(tmp_path / name, codec=codec)
    content = path.read_bytes()

    @fuzz(120)
    @given(CHANGES, st.sampled_from([READERS["transcode"], index_packets]))
    def check(changes, read):
        path.write_bytes(flipped(content, changes))
        outcome(lambda: read(str(path)))

    check()


def fuzz_shard(root: str, cases: int) -> None:
    """Damage the first video of a shard set in place, and read it."""
    shards = ShardSet.open(root)
    extents = shards._index
    begin, length = int(extents.offset[0][0]), int(extents.length[0][0])
    path = Path(root) / shards.manifest.levels[0].shards[0].name
    content = path.read_bytes()[begin : begin + length]

    @fuzz(cases)
    @given(CHANGES)
    def check(changes):
        with open(path, "r+b") as file:
            file.seek(begin)
            file.write(flipped(content, changes, head=int(extents.head[0][0])))
        outcome(lambda: list(decode_frames(shards.video("train", 0), (0, 5, 11))))

    check()


def test_fuzz_of_a_shard(tmp_path):
    shards = write_shards(tmp_path, train=1, val=1, frames=FRAMES)
    child = multiprocessing.get_context("spawn").Process(target=fuzz_shard, args=(shards.root, 500))
    child.start()
    child.join()
    assert child.exitcode == 0
