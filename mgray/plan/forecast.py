"""What a schedule asks of a cluster: devices, decoding and network, phase by phase, and how long it takes there.

Training seconds only: start-up before the first step, validation and checkpoints are not in them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mgray.errors import ConfigError
from mgray.plan.amend import rescaled
from mgray.plan.overlap import host_s, pipeline_starts
from mgray.plan.phase import Phase
from mgray.plan.plan import Plan
from mgray.plan.shape import BatchShape, ClipShape
from mgray.plan.share import share_of
from mgray.plan.timing import Timing

BUCKET_BYTES = 25 * 2**20
"""Gradients of one all-reduce of DDP; the last one cannot hide behind the backward pass."""
BACKWARD = 2 / 3
"""The backward pass's part of a step, behind which the other buckets hide."""

Bound = Literal["device", "decode", "cores", "network"]
"""cores: the CPUs that devices and decoding share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What a step moves between devices, and how fast. A model: nothing of it is measured.

    An all-reduce takes a latency for each level of a tree, up and down, and the bytes that a ring moves: NCCL has both (trees since
    2.4) and takes the faster one. Small ones take some tens of microseconds within a node: 2 x 3 hops of 5 us are 30 for eight GPUs.
    """

    gradient_bytes: float = 0.0
    norm_layers: int = 0
    """Batch norms; where a group of clips spans devices each synchronises twice in a step, forward and backward."""
    bandwidth: float = 12.5e9
    """Bytes a second that a device sends to other nodes (12.5e9 is 100 Gbit/s)."""
    node_bandwidth: float = 125e9
    """Bytes a second that it sends to another of its node."""
    latency_s: float = 20e-6
    """Of a hop between nodes."""
    node_latency_s: float = 5e-6
    """Of a hop between two devices of a node."""
    node_gpus: int = 8
    """Devices of a node."""

    def hops(self, ranks: int) -> tuple[int, int]:
        """Levels of the tree over neighbouring ranks: within nodes, and between them."""
        nodes = -(-ranks // self.node_gpus)
        return math.ceil(math.log2(min(ranks, self.node_gpus))), math.ceil(math.log2(nodes))

    def all_reduce_s(self, num_bytes: float, ranks: int) -> float:
        """The tree's hops, up and down, and 2 (n - 1) n-ths of the bytes."""
        inside, between = self.hops(ranks)
        moved = num_bytes * (ranks - 1) / ranks
        moving_s = moved / (self.bandwidth if between else self.node_bandwidth)
        return 2 * (inside * self.node_latency_s + between * self.latency_s + moving_s)

    def exposed_s(self, device_s: float, ranks: int, group_ranks: int) -> float:
        """Seconds of a step that devices wait for the network: gradients beyond the backward pass, and batch norm."""
        whole = self.all_reduce_s(self.gradient_bytes, ranks)
        last = self.all_reduce_s(min(self.gradient_bytes, BUCKET_BYTES), ranks)
        norms = 2 * self.norm_layers * self.all_reduce_s(0.0, group_ranks)
        return max(last, whole - BACKWARD * device_s) + norms


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Devices and cores that train a plan."""

    gpus: int = 1
    """Devices, one worker on each."""
    cores: float = math.inf
    """CPU cores of the cluster, for decoding and for what devices take of them."""
    device_cores: float = 0.0
    """Cores that a device keeps busy itself: 1 where workers train on one CPU core each."""
    step: Timing | None
    """Seconds of one device's share of a step; None goes by operations at `device_flops`."""
    device_flops: float = 40e12
    """Operations a second that a device is taken to do where step times are not known."""
    decode: Timing | None = None
    """Core seconds to decode clips; None where it is not known."""
    network: Network
    opening_s: float = 0.0
    """Seconds of training that a rank loses whenever a pipeline of its feed is opened; ranks open theirs together."""
    start_s: float = 0.0
    """What the first step takes beyond others of its shape."""

    def __post_init__(self) -> None:
        for name, ok in (("gpus", self.gpus >= 1), ("cores", self.cores > 0), ("device_cores", self.device_cores >= 0)):
            if not ok:
                raise ConfigError(name, getattr(self, name), "is too small", "give a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseForecast:
    """One phase on a cluster; seconds are those of all its steps."""

    flops: float
    """Floating-point operations, forward and backward, two for a multiply-add."""
    device_s: float
    network_s: float
    """Exposed, beyond what is in the measured step times."""
    host_s: float
    """What cores need for decoding, and for devices that are cores, if all are busy."""
    feed_s: float
    """Lost at the openings of the feed's pipelines, and in the run's first step."""
    clips_per_gpu: tuple[int, ...]
    """The largest share of a step in each slot."""
    clip_rate: float
    """Clips a second that keep the devices busy."""
    frame_rate: float
    """Frames of those clips a second."""
    source_frame_rate: float
    """Frames a second of the videos that those clips span, at the mean stride: what is decoded where no frame can be skipped."""
    cores: float | None
    """CPU cores that keep the devices busy: decoding, and the devices' own; None where decode times are not known."""
    bound: Bound

    @property
    def busy_s(self) -> float:
        return self.device_s + self.network_s

    @property
    def seconds(self) -> float:
        return max(self.busy_s, self.host_s) + self.feed_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A plan on a cluster, beside its baseline there."""

    cluster: Cluster
    phases: tuple[PhaseForecast, ...]
    seconds: float
    baseline_seconds: float
    extrapolated: tuple[BatchShape, ...]
    """Batches of clip shapes that were not measured, though others were."""
    seconds_range: tuple[float, float]
    """From no overhead in a step to nothing else, where measured times do not tell; else twice `seconds`."""

    @property
    def speed_up(self) -> float:
        return self.baseline_seconds / self.seconds

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases)

    @property
    def bound(self) -> Bound:
        """What bounds most of the time."""
        spent: dict[Bound, float] = {}
        for phase in self.phases:
            spent[phase.bound] = spent.get(phase.bound, 0.0) + phase.seconds
        return max(spent, key=lambda bound: spent[bound])

    def to_json(self) -> dict[str, Any]:
        cluster = self.cluster
        return {
            "gpus": cluster.gpus,
            "cores": cluster.cores if math.isfinite(cluster.cores) else None,
            "step_times": None if cluster.step is None else cluster.step.source,
            "device_flops": cluster.device_flops if cluster.step is None else None,
            "decode_times": None if cluster.decode is None else cluster.decode.source,
            "overhead_s": 0.0 if cluster.step is None else cluster.step.overhead_s,
            "extrapolated": [str(batch) for batch in self.extrapolated],
            "flops": self.flops,
            "seconds": self.seconds,
            "seconds_range": list(self.seconds_range),
            "opening_s": cluster.opening_s,
            "baseline_seconds": self.baseline_seconds,
            "speed_up": self.speed_up,
            "bound": self.bound,
            "phases": [
                {
                    "flops": phase.flops, "seconds": phase.seconds, "device_s": phase.device_s, "network_s": phase.network_s,
                    "host_s": phase.host_s, "feed_s": phase.feed_s, "clips_per_gpu": list(phase.clips_per_gpu), "clips_per_s": phase.clip_rate,
                    "frames_per_s": phase.frame_rate, "source_frames_per_s": phase.source_frame_rate,
                    "cores": phase.cores, "bound": phase.bound,
                }
                for phase in self.phases
            ],
        }  # fmt: skip


def forecast(plan: Plan, cluster: Cluster, clip_flops: Callable[[ClipShape], float]) -> Forecast:
    """What `plan`, which is that of the cluster's workers (`on_workers`), and its baseline take on `cluster`.

    Devices and cores work at the same time, with enough blocks ahead that slots of a short cycle even out: a phase lasts as
    long as the slower of the two, and what openings of pipelines cost. The largest share of a step counts; the network adds what
    the backward pass cannot hide.

    Args:
        clip_flops: operations of one clip, forward and backward.
    """
    phases = _phases(plan, cluster, clip_flops)
    seconds = sum(phase.seconds for phase in phases)
    baseline = on_workers(plan.baseline(), cluster.gpus)
    batches = {batch: None for phase in (*plan.phases, *baseline.phases) for batch in phase.batches}
    step, ends = cluster.step, (seconds, seconds)
    if step is not None and not step.is_identified:
        few, many = (
            sum(p.seconds for p in _phases(plan, dataclasses.replace(cluster, step=own), clip_flops))
            for own in (dataclasses.replace(step, exponent=0.0), dataclasses.replace(step, exponent=1.0))
        )
        ends = (min(few, many), max(few, many))
    return Forecast(
        cluster=cluster,
        phases=phases,
        seconds=seconds,
        baseline_seconds=sum(phase.seconds for phase in _phases(baseline, cluster, clip_flops)),
        extrapolated=tuple(batch for batch in batches if step is not None and not step.is_measured(batch)),
        seconds_range=ends,
    )


def on_workers(plan: Plan, workers: int) -> Plan:
    """The plan as so many workers begin it: batches and rates follow their number where `plan.batch_policy` says so."""
    return plan if plan.spec.batch_policy == "global" or workers == 1 else rescaled(plan, 0, 1, workers)


def _phases(plan: Plan, cluster: Cluster, clip_flops: Callable[[ClipShape], float]) -> tuple[PhaseForecast, ...]:
    return tuple(_phase(phase, cluster, clip_flops) for phase in plan.phases)


def _phase(phase: Phase, cluster: Cluster, clip_flops: Callable[[ClipShape], float]) -> PhaseForecast:
    device_s = network_s = decode_s = flops = 0.0
    shares = []
    for batch, steps in zip(phase.batches, phase.slot_steps, strict=True):
        share, group_ranks = largest_share(batch.clips, phase.bn_groups, cluster.gpus)
        own_s = (
            share * clip_flops(batch.clip) / cluster.device_flops
            if cluster.step is None
            else cluster.step.seconds(share, batch.clip, cluster.gpus)
        )
        exposed = cluster.network.exposed_s(own_s, cluster.gpus, group_ranks)
        measured = 1 if cluster.step is None else cluster.step.workers_at(share, batch.clip)
        if measured > 1:  # their own is in the measured times
            _, measured_group = largest_share(batch.clips, phase.bn_groups, measured)
            exposed = max(0.0, exposed - cluster.network.exposed_s(own_s, measured, measured_group))
        device_s += steps * own_s
        network_s += steps * exposed
        if cluster.decode is not None:
            decode_s += steps * batch.clips * cluster.decode.seconds(1, batch.clip)
        flops += steps * batch.clips * clip_flops(batch.clip)
        shares.append(share)
    busy_s = device_s + network_s
    needed_s = host_s(device_s, decode_s, cluster.gpus, cluster.device_cores, cluster.cores)
    block_bytes = max(3 * share * batch.clip.voxels for share, batch in zip(shares, phase.batches, strict=True))
    steps_of = range(phase.first_step, phase.first_step + phase.num_steps)
    openings = len(pipeline_starts(steps_of, block_bytes)) - (not phase.first_step)  # the first is not waited for
    bound: Bound = "network" if network_s > device_s else "device"
    if needed_s > busy_s:
        bound = "cores" if cluster.device_cores else "decode"
    stride = (phase.stride_min + phase.stride_max) / 2
    clip_rate = phase.clips / busy_s
    return PhaseForecast(
        flops=flops,
        device_s=device_s,
        network_s=network_s,
        host_s=needed_s,
        feed_s=openings * cluster.opening_s + (cluster.start_s if not phase.first_step else 0.0),
        clips_per_gpu=tuple(shares),
        clip_rate=clip_rate,
        frame_rate=clip_rate * phase.frames,
        source_frame_rate=clip_rate * phase.frames * stride,
        cores=None if cluster.decode is None else (decode_s + cluster.device_cores * cluster.gpus * device_s) / busy_s,
        bound=bound,
    )


def largest_share(clips: int, groups: int, ranks: int) -> tuple[int, int]:
    """The most clips that a rank has of a step, and the ranks that the widest batch-norm group spans."""
    shares = [share_of(rank, ranks, clips, groups) for rank in range(ranks)]
    return max(len(share.clips) for share in shares), max(len(share.ranks) for share in shares)
