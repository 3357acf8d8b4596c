"""The forecast of a schedule on a cluster, for people to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mgray.plan.forecast import Forecast
from mgray.plan.overlap import AHEAD
from mgray.plan.phase import Phase
from mgray.plan.table import PlanTable, slots


def forecast_table(phases: Sequence[Phase], found: Forecast) -> PlanTable:
    """What each phase asks of the cluster; columns with one value a slot join them by slashes."""
    head = (
        "phase", "frames", "crop", "clips/GPU", "FLOP", "step ms", "net ms", "clips/s", "frames/s", "source/s", "cores",
        "time", "share", "bound",
    )  # fmt: skip
    rows = tuple(
        (
            str(phase.index),
            str(phase.frames),
            slots([batch.height for batch in phase.batches]),
            slots(part.clips_per_gpu),
            si(part.flops),
            f"{1000 * part.seconds / phase.num_steps:,.4g}",
            f"{1000 * part.network_s / phase.num_steps:,.3g}",
            _rate(part.clip_rate),
            _rate(part.frame_rate),
            _rate(part.source_frame_rate),
            "?" if part.cores is None else f"{part.cores:,.1f}",
            duration(part.seconds),
            f"{part.seconds / found.seconds:.1%}",
            part.bound,
        )
        for phase, part in zip(phases, found.phases, strict=True)
    )
    cluster = found.cluster
    step = cluster.step
    known = (
        f"MODELLED from FLOPs at {cluster.device_flops / 1e12:g} TFLOP/s a device (--tflops); measure with --step-times"
        if step is None
        else step.source
        + (f"; {1000 * step.overhead_s:.3g} ms of a step do not shrink with its clips" if step.is_identified else "")
    )
    lines = [
        f"{cluster.gpus} device(s): {duration(found.seconds)} of training, {si(found.flops)}FLOP; "
        f"baseline {duration(found.baseline_seconds)}; speed-up {found.speed_up:.2f}x, bound by {found.bound}",
        f"step times: {known}",
    ]
    if step is not None and found.seconds_range[1] > 1.01 * found.seconds_range[0]:
        lines.append(
            f"measured on {' and '.join(map(str, step.workers))} device(s), on steps of about equal voxels: how they shrink with their clips is "
            f"not known; {duration(found.seconds_range[0])} to {duration(found.seconds_range[1])}, above is the mean (geometric) of "
            "each step; --step-times of another number of devices, too, would tell"
        )
    if cluster.opening_s or cluster.start_s:
        feed_s = sum(phase.feed_s for phase in found.phases)
        lines.append(
            f"feed: each pipeline that opens (a phase begins, or {AHEAD} steps are over) costs {1000 * cluster.opening_s:,.0f} ms of training, "
            f"the first step {1000 * cluster.start_s:,.0f} ms more than others; {duration(feed_s)} in all"
        )
    if found.extrapolated:
        lines.append(
            f"not measured, {'on the line through the others' if step is not None and step.is_identified else 'by their voxels beside the nearest'}: {', '.join(map(str, found.extrapolated))}"
        )
    lines.append(
        "decode: not known; --decode-rate says what a core does (mgray bench feed measures it)"
        if cluster.decode is None
        else f"decode: {cluster.decode.source}; "
        + (
            f"{cluster.cores:g} cores"
            if math.isfinite(cluster.cores)
            else "as many cores as the column says, so that decoding bounds nothing (--cores sets a number)"
        )
    )
    lines.append(
        f"network: MODELLED, not measured: {cluster.network.gradient_bytes / 1e6:,.0f} MB gradients; "
        f"{cluster.network.node_bandwidth / 1e9:g} GB/s and {1e6 * cluster.network.node_latency_s:g} us a hop within a node of "
        f"{cluster.network.node_gpus}, {cluster.network.bandwidth / 1e9:g} GB/s and {1e6 * cluster.network.latency_s:g} us between nodes; shown is what the backward pass (2/3 of a step) does not hide"
    )
    idle = [b for p in phases for b in p.batches if b.clips < cluster.gpus]
    if idle:
        lines.append(
            f"{cluster.gpus - min(b.clips for b in idle)} devices have no clip in the smallest steps: raise --plan.batch"
        )
    lines.append(
        "clips/s, frames/s: to be decoded to keep devices busy; source/s: frames of the videos that those clips span, all of which are "
        "decoded where none can be skipped"
    )
    lines.append("start-up, validation, checkpoints are not in the times")
    return PlanTable(head, rows, tuple(lines), spare=("FLOP", "source/s", "frames/s", "share", "net ms"))


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value < 1e5 else si(value)


def si(value: float) -> str:
    """Three digits and a prefix, e.g. 4.47 G."""
    power = min(6, max(0, math.floor(math.log10(value) / 3))) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}"
