"""Shapes of clips and mini-batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClipShape:
    """What one resampled clip looks like: frames x height x width (pixels)."""

    frames: int
    height: int
    width: int

    @property
    def voxels(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True, slots=True)
class BatchShape:
    """A global mini-batch: clips x frames x height x width (pixels)."""

    clips: int
    frames: int
    height: int
    width: int

    @property
    def clip(self) -> ClipShape:
        return ClipShape(self.frames, self.height, self.width)

    @property
    def voxels(self) -> int:
        return self.clips * self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.clips}x{self.frames}x{self.height}x{self.width}"
