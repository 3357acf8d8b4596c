import numpy as np
import pytest

from mgray.data.annotations import read_annotations
from mgray.data.decode.passthrough import index_packets
from mgray.data.synthetic import MOTIONS, motion_frames, write_motion_videos
from tests.support.videos import psnr


def clip(motion: str, seed: int, frames: int = 9) -> np.ndarray:
    return motion_frames(motion, frames=frames, width=64, height=48, rng=np.random.default_rng(seed))


def shift(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The displacement (down, across) at which two frames match best, by phase correlation."""
    a, b = (np.fft.fft2(frame.astype(float).mean(-1) - frame.mean()) for frame in (one, other))
    peak = np.fft.ifft2(b * a.conj()).real
    down, across = np.unravel_index(peak.argmax(), peak.shape)
    rows, columns = peak.shape
    return int((down + rows // 2) % rows - rows // 2), int((across + columns // 2) % columns - columns // 2)


@pytest.mark.parametrize(
    ("motion", "down", "across"),
    [("right", 0, -1), ("left", 0, 1), ("down", -1, 0), ("up", 1, 0), ("up_left", 1, 1), ("down_right", -1, -1)],
)
def test_the_picture_moves_against_the_window(motion, down, across):
    for seed in range(5):
        frames = clip(motion, seed)
        assert np.array_equal(np.sign(shift(frames[0], frames[6])), (down, across))


def test_turns_are_each_other_reversed():
    for seed in range(3):
        right, left = clip("turn_right", seed), clip("turn_left", seed)
        assert not np.array_equal(right, left)
        centre = np.s_[18:30, 24:40]
        assert psnr(right[0][centre], right[1][centre]) > psnr(right[0][centre], right[8][centre])


def test_stills_of_all_motions_look_alike():
    """Mean, contrast and direction of gradients, over many clips, do not differ between classes."""
    statistics = {}
    for motion in MOTIONS:
        stills = np.stack([clip(motion, seed, frames=1)[0].mean(-1) for seed in range(40)])
        vertical, horizontal = np.gradient(stills, axis=(1, 2))
        statistics[motion] = (stills.mean(), stills.std(), np.log(horizontal.std() / vertical.std()))
    values = np.array(list(statistics.values()))
    assert np.ptp(values[:, 0]) < 20 and np.ptp(values[:, 1]) < 12 and np.abs(values[:, 2]).max() < 0.15


def test_written_videos_are_a_folder_of_classes(tmp_path):
    write_motion_videos(str(tmp_path / "a"), classes=3, clips_per_class=2, frames=8, width=48, height=32, seed=4)
    write_motion_videos(str(tmp_path / "b"), classes=3, clips_per_class=2, frames=8, width=48, height=32, seed=4)
    annotations = read_annotations(str(tmp_path / "a"))
    assert len(annotations.classes) == 3 and set(annotations.classes) <= set(MOTIONS)
    assert len(annotations.samples) == 6
    for sample in annotations.samples:
        video = index_packets(annotations.locate(sample)).levels[0]
        assert (video.source.num_frames, video.source.width, video.source.height) == (8, 48, 32)
        assert (tmp_path / "a" / sample.path).read_bytes() == (tmp_path / "b" / sample.path).read_bytes()
    with pytest.raises(ValueError, match="classes = 99"):
        write_motion_videos(str(tmp_path), classes=99)
