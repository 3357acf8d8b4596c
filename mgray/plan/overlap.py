"""What decoding and the opening of pipelines cost training that shares its cores with them; the feed is in `mgray.data.feed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mgray.plan.shape import ClipShape
from mgray.plan.timing import Timing

AHEAD = 32
"""Steps of a pipeline at most, and its bytes at most, as `mgray.config.FeedSection` has them."""
AHEAD_BYTES = 2**30


def pipeline_starts(steps: range, block_bytes: int, ahead: int = AHEAD, ahead_bytes: int = AHEAD_BYTES) -> range:
    """First steps of the pipelines that a phase's steps are cut into on a rank whose blocks have so many bytes."""
    return steps[:: max(2, min(ahead, ahead_bytes // max(1, block_bytes)))]


def pipelines(steps: range, block_bytes: int, ahead: int = AHEAD, ahead_bytes: int = AHEAD_BYTES) -> Iterator[range]:
    """The steps of each of these pipelines."""
    starts = pipeline_starts(steps, block_bytes, ahead, ahead_bytes)
    for start in starts:
        yield range(start, min(start + starts.step, steps.stop))


def opened_at(pipeline: range) -> int:
    """The first step that is trained after the next pipeline has been opened: half of this one is used up then."""
    return max(pipeline.start, pipeline.stop - 1 - len(pipeline) // 2)


def host_s(device_s: float, decode_s: float, gpus: int, device_cores: float, cores: float) -> float:
    """Seconds that the cores need at least for `decode_s` core seconds, and for devices that are cores.

    Each rank decodes on what its share of the cores leaves, on one at least.
    """
    decoders = gpus * max(1.0, cores / gpus - max(1.0, device_cores))
    return max((decode_s + device_cores * gpus * device_s) / cores, decode_s / decoders)


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What a run took beyond its undisturbed steps."""

    workers: int
    device_cores: float
    steady_s: float
    """All steps, as long as they take while no pipeline is opened."""
    lost_s: float
    """What the steps took beyond that, and their wait where a pipeline begins; waits within one are the decoders' own."""
    start_s: float
    """The first step's part of it, which is not in `lost_s`."""
    openings: int
    """Pipelines that were opened while the run trained."""
    clips: Mapping[ClipShape, int]
    """What was decoded."""

    def opening_s(self, decode: Timing | None, cores: float) -> float:
        """Seconds of training that an opening costs: what was lost less the time that decoding had to take from training."""
        if not self.openings:
            return 0.0
        decode_s = 0.0 if decode is None else sum(n * decode.seconds(1, shape) for shape, n in self.clips.items())
        shared_s = host_s(self.steady_s, decode_s, self.workers, self.device_cores, cores) - self.steady_s
        return max(0.0, self.lost_s - max(0.0, shared_s)) / self.openings
