"""A checkpoint's predictions of single video files, window by window; no dataset is needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from mgray.config import Run
from mgray.data.clip import ASSUMED_FPS, Views, clip_span, sliding_clips, view_clips
from mgray.data.decode.clips import decode_clips
from mgray.data.decode.passthrough import index_packets
from mgray.data.shards.packets import StoredVideo
from mgray.data.source import Block
from mgray.data.storage import MappedFile
from mgray.errors import ConfigError, VideoError
from mgray.plan import ClipShape
from mgray.train.checkpoint import newest_checkpoint, read_meta
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from mgray.train.views import log_scores, pooled, trained_worker

LIMIT_S = 86_400.0
"""Seconds of decoding after which a file is given up: somebody waits, and may interrupt it."""
TOP = 5
TOP_OF_WINDOW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A class and its probability."""

    name: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPrediction:
    """What a clip of a video shows, from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    top: tuple[Ranked, ...]
    """The three likeliest classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPrediction:
    """What a video shows over time, and as a whole."""

    path: str
    duration_s: float
    windows: tuple[WindowPrediction, ...]
    top: tuple[Ranked, ...]
    """The five likeliest classes by the mean over the windows (their maximum, where a video has several classes)."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        windows = [
            {"start_s": round(window.start_s, 3), "end_s": round(window.end_s, 3), "top": _rows(window.top)}
            for window in self.windows
        ]
        return {
            "video": self.path,
            "duration_s": round(self.duration_s, 3),
            "top": _rows(self.top),
            "windows": windows,
        }


def _rows(top: tuple[Ranked, ...]) -> list[dict[str, Any]]:
    return [{"class": item.name, "score": item.score} for item in top]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A trained model that takes video files."""

    checkpoint: Path
    run: Run
    classes: tuple[str, ...]
    worker: Worker
    multi_label: bool = False
    """Whether a video has several classes, so that scores are a sigmoid's and pooled by their maximum."""

    @classmethod
    def load(cls, path: str) -> Self:
        """The model of a run's newest checkpoint, or of the one given.

        Raises:
            CheckpointError: `path` holds no whole checkpoint.
        """
        folder = newest_checkpoint(Path(path).expanduser())
        meta = read_meta(folder)
        run = Run.from_json(meta.run)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        session = LocalSession(folder.parent, run.feed, device=device)
        worker = trained_worker(folder, meta, session)
        return cls(checkpoint=folder, run=run, classes=meta.classes, worker=worker, multi_label=meta.multi_label)

    def predict(
        self, path: str, *, every_s: float = 0.0, on_progress: Callable[[int, int], None] | None = None
    ) -> VideoPrediction:
        """Predict a video from centre crops of the base shape.

        Args:
            every_s: seconds from the beginning of a clip to that of the next; 0 sets them end to end.
            on_progress: told how many clips are done, of how many.

        Raises:
            ConfigError: `every_s` is negative or no number, or the model is one of whole videos.
            VideoError: the file cannot be opened or decoded.
        """
        if not (math.isfinite(every_s) and every_s >= 0):
            raise ConfigError("every", every_s, "must not be negative", "give seconds, e.g. 0.5")
        plan, fps = self.run.plan, self.run.data.fps
        whole_video = self.run.data.sampling == "segments"
        if whole_video and every_s:
            raise ConfigError(
                "every", every_s, "does not go with a model of whole videos (data.sampling segments)", "leave it out"
            )
        try:
            video = _opened(path)
            shape = ClipShape(plan.frames, plan.crop, plan.crop)
            grid = {"stride": plan.stride, "short_side": plan.jitter_min}
            if whole_video:
                specs = tuple(view_clips(0, video.source, shape, Views(), **grid, fps=fps, sampling="segments"))
            else:
                specs = sliding_clips(video.source, shape, **grid, fps=fps, every_s=every_s)
            parts = []
            for first in range(0, len(specs), self.run.train.eval_batch):
                some = specs[first : first + self.run.train.eval_batch]
                clips_NTHWC = np.empty((len(some), shape.frames, shape.height, shape.width, 3), np.uint8)
                decode_clips(video, some, clips_NTHWC, limit_s=LIMIT_S)
                parts.append(log_scores(self.worker, _block(clips_NTHWC), len(some), multi_label=self.multi_label))
                if on_progress is not None:
                    on_progress(first + len(some), len(specs))
        except VideoError as error:
            raise VideoError("VIDEO", path, error.problem, "name another file, or repair it") from None
        log_NC = torch.cat(parts)
        rate, total = video.source.fps or ASSUMED_FPS, video.source.num_frames
        span = total if whole_video else clip_span(video.source, shape, stride=plan.stride, fps=fps)
        windows = tuple(
            WindowPrediction(
                start_s=0.0 if whole_video else spec.frames[0] / rate,
                end_s=(total if whole_video else min(spec.frames[0] + span, total)) / rate,
                top=self._ranked(scores_C, TOP_OF_WINDOW),
            )
            for spec, scores_C in zip(specs, log_NC.exp().cpu().numpy(), strict=True)
        )
        whole_C = pooled(log_NC[None], "max" if self.multi_label else "mean")[0].cpu().numpy()
        return VideoPrediction(path=path, duration_s=total / rate, windows=windows, top=self._ranked(whole_C, TOP))

    def _ranked(self, scores_C: npt.NDArray[np.float64], count: int) -> tuple[Ranked, ...]:
        best = np.argsort(-scores_C, kind="stable")[:count]
        return tuple(Ranked(name=self.classes[i], score=float(scores_C[i])) for i in best)


def _opened(path: str) -> StoredVideo:
    """A file as packets that clips can be decoded from."""
    video = index_packets(path, limit_s=LIMIT_S).levels[0]
    assert video is not None, "the finest level holds every video"
    return dataclasses.replace(video, data=MappedFile(video.file).view) if video.file else video


def _block(clips_NTHWC: npt.NDArray[np.uint8]) -> Block:
    none_N = np.zeros(len(clips_NTHWC), np.int64)
    return Block(0, 0, clips_NTHWC, none_N, none_N, none_N)
