"""Small generated videos in which the class is a motion, and no still gives the class away.

A scene is a random texture without borders, seen through a window at a random place, angle and zoom, with sensor noise.
Only how the window moves depends on the class: stills of all classes have the same distribution.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mgray.data.decode.encode import encode_frames

Path = Callable[[npt.NDArray[np.floating[Any]]], tuple[npt.NDArray[np.floating[Any]], ...]]
"""Progress [T] -> place across [T], place down [T], angle in radians [T]; a progress of 1 is one window's short side."""


def _straight(degrees: float) -> Path:
    across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return lambda progress: (across * progress, down * progress, 0 * progress)


def _swing(across: float, down: float) -> Path:
    def path(progress: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.floating[Any]], ...]:
        swing = np.sin(8 * progress) / 8
        return across * swing, down * swing, 0 * progress

    return path


MOTIONS: Mapping[str, Path] = {
    "right": _straight(0),
    "left": _straight(180),
    "down": _straight(90),
    "up": _straight(270),
    "turn_right": lambda progress: (0 * progress, 0 * progress, 2 * progress),
    "turn_left": lambda progress: (0 * progress, 0 * progress, -2 * progress),
    "swing_across": _swing(1, 0),
    "swing_down": _swing(0, 1),
    "down_right": _straight(45),
    "up_left": _straight(225),
    "up_right": _straight(315),
    "down_left": _straight(135),
}
"""Class name -> how the window moves over the scene. Mirror images are other classes: train without flips."""

_TEXTURE = 256


def motion_frames(
    motion: str, *, frames: int, width: int, height: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A clip of one motion: uint8 [frames, height, width, 3], RGB."""
    texture = _texture(rng)
    speed = rng.uniform(0.015, 0.03)
    progress = (rng.uniform(0, 20) + np.arange(frames)) * speed
    across, down, angle = MOTIONS[motion](progress)
    angle = angle + rng.uniform(0, 2 * math.pi)
    zoom = rng.uniform(0.7, 1.4)
    place = rng.uniform(0, _TEXTURE, 2)
    side = min(width, height)
    x = np.arange(width) - width / 2
    y = (np.arange(height) - height / 2)[:, None]
    clip = np.empty((frames, height, width, 3), np.uint8)
    # The window turns about its centre in its own frame, so that "right" is right on the screen at every angle.
    for t in range(frames):
        moved_x, moved_y = x + across[t] * side, y + down[t] * side
        cos, sin = math.cos(angle[t]) * zoom, math.sin(angle[t]) * zoom
        seen = _sample(texture, place[0] + cos * moved_x - sin * moved_y, place[1] + sin * moved_x + cos * moved_y)
        clip[t] = np.clip(seen + rng.normal(0, 6, seen.shape), 0, 255).astype(np.uint8)
    return clip


def write_motion_videos(
    root: str,
    *,
    classes: int = 4,
    clips_per_class: int = 8,
    frames: int = 16,
    width: int = 96,
    height: int = 64,
    seed: int = 0,
) -> None:
    """Write `root/class/clip.mp4` for the first `classes` motions (H.264, 25 frames/s); the same seed, the same pixels."""
    if not 1 <= classes <= len(MOTIONS):
        raise ValueError(f"classes = {classes}: there are {len(MOTIONS)} motions")
    for label, motion in enumerate(list(MOTIONS)[:classes]):
        folder = os.path.join(root, motion)
        os.makedirs(folder, exist_ok=True)
        for clip in range(clips_per_class):
            rng = np.random.default_rng([seed, label, clip])
            pixels = motion_frames(motion, frames=frames, width=width, height=height, rng=rng)
            encode_frames(os.path.join(folder, f"{clip:04d}.mp4"), pixels)


def _texture(rng: np.random.Generator) -> npt.NDArray[np.floating[Any]]:
    """A periodic random picture, finer in brightness than in colour: float32 [_TEXTURE, _TEXTURE, 3], about 0..255."""
    return np.asarray(128 + 44 * _band(rng, 1, 8.0) + 20 * _band(rng, 3, 24.0), np.float32)


def _band(rng: np.random.Generator, channels: int, shortest: float) -> npt.NDArray[np.floating[Any]]:
    """Isotropic periodic noise of wavelengths from `shortest` to 64 pixels, variance 1: [_TEXTURE, _TEXTURE, channels]."""
    rows, columns = np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None, :]
    frequency = np.hypot(rows, columns)
    inside = (frequency >= 1 / 64) & (frequency <= 1 / shortest)
    waves = rng.normal(size=(int(inside.sum()), channels, 2)) / frequency[inside][:, None, None]
    spectrum = np.zeros((*frequency.shape, channels), np.complex128)
    spectrum[inside] = waves[..., 0] + 1j * waves[..., 1]
    picture = np.fft.irfft2(spectrum, (_TEXTURE, _TEXTURE), axes=(0, 1))
    return np.asarray(picture / picture.std())


def _sample(
    texture: npt.NDArray[np.floating[Any]], x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """The periodic texture at real coordinates [H, W], bilinear: float32 [H, W, 3]."""
    left, top = np.floor(x), np.floor(y)
    across = (x - left).astype(np.float32)[..., None]
    down = (y - top).astype(np.float32)[..., None]
    x0, y0 = left.astype(np.int64) % _TEXTURE, top.astype(np.int64) % _TEXTURE
    x1, y1 = (x0 + 1) % _TEXTURE, (y0 + 1) % _TEXTURE
    above = texture[y0, x0] * (1 - across) + texture[y0, x1] * across
    below = texture[y1, x0] * (1 - across) + texture[y1, x1] * across
    return np.asarray(above * (1 - down) + below * down)
