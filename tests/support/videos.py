"""Videos for tests: textures that move, and files that are hard to read."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from mgray.data.clip import ClipSpec, VideoInfo
from mgray.data.decode.encode import encode_frames
from mgray.data.synthetic import motion_frames
from mgray.plan import ClipShape


def moving(frames: int = 40, width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth textured scene that moves: uint8 [frames, height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = motion_frames("right", frames=frames, width=-(-width // 2), height=-(-height // 2), rng=rng)
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), Image.BICUBIC)) for frame in small])


def write_tree(root: Path, classes: dict[str, int], frames: int = 16) -> Path:
    """`root/class/0.mp4`, ... with the given number of clips per class."""
    for label, (name, clips) in enumerate(classes.items()):
        for clip in range(clips):
            path = root / name / f"{clip}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_frames(str(path), moving(frames, 48, 32, seed=100 * label + clip))
    return root


def rotated(source: Path, degrees: int, target: Path) -> Path:
    """A copy of an mp4 file whose header asks for a clockwise rotation."""
    data = bytearray(source.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 16
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def cut_off(source: Path, target: Path, share: float = 0.6) -> Path:
    """The first part of a file, remuxed so that its header comes first and still promises all frames."""
    whole = target.with_name("whole-" + target.name)
    with av.open(str(source)) as read, av.open(str(whole), "w", options={"movflags": "faststart"}) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    data = whole.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def write_audio(path: Path) -> Path:
    """A file with a second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_bt709(path: Path, frames: np.ndarray) -> Path:
    """A file whose colours are coded, and tagged, as BT.709."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "8", "x264-params": "colormatrix=bt709"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for index, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sequential(path: Path) -> np.ndarray:
    """All frames of a file as an ordinary reader gives them: uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def whole_clip(video: VideoInfo, frames: tuple[int, ...] | None = None, flip: bool = False) -> ClipSpec:
    """A clip of whole frames at the source's size; of all frames unless some are named."""
    wanted = tuple(range(video.num_frames)) if frames is None else frames
    shape = ClipShape(len(wanted), video.height, video.width)
    return ClipSpec(0, 0, shape, wanted, (0.0, 0.0, float(video.width), float(video.height)), flip)


def empty_clip(spec: ClipSpec) -> np.ndarray:
    """Room for a clip."""
    return np.zeros((spec.shape.frames, spec.shape.height, spec.shape.width, 3), np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of 8-bit pictures."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else 10 * float(np.log10(255**2 / error))
