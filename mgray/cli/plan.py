"""`mgray plan`: schedules, without torch or Ray."""

from __future__ import annotations

import itertools
import json as json_module
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mgray.cli.parse import Command, parse, take_name, workload
from mgray.config import ModelSection
from mgray.errors import ConfigError
from mgray.model import check_model
from mgray.plan import ClipShape, Cluster, Network, Plan, PlanSpec, PlanTable, Proposal, Timing, forecast, optimise
from mgray.plan.forecast import on_workers
from mgray.plan.forecast_table import duration, forecast_table
from mgray.plan.optimise import GIVEN
from mgray.pyslowfast import read_plan_spec
from workloads import DATASETS, Dataset, dataset_of

if TYPE_CHECKING:
    from mgray.bench.timing import StepTimes

CLUSTER_OPTIONS = (
    "decode_rate", "cores", "device_cores", "tflops", "network_gbit", "latency_us", "node_gpus", "node_gbit", "node_latency_us"
)  # fmt: skip
"""Options that change nothing but a prediction."""
PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
LONG = "long (frames x crop)"
PYSLOWFAST_KEY = r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*"


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What the plan needs to know of the dataset."""

    num_samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Clips in the training set; default: those of data.path, else those of the workload's dataset or of Kinetics-400."""
    path: str = ""
    """Shards from `mgray ingest`, a folder of videos or a list, to count their clips."""
    videos: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Folder of the videos that lists name, where it is not that of the lists."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the source names no split."""


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY VALUE ...]")] = ()
    """With --pyslowfast: settings over those of its file, e.g. MULTIGRID.EPOCH_FACTOR 1.0."""
    pyslowfast: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A PySlowFast YAML file to read the schedule from; --plan.* options apply over it."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the schedule into this file (.png, .svg or .pdf)."""
    gpus: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """Devices to predict for, one worker on each: time, decoding, cores and network of each phase. 0: those of --step-times, else no prediction."""
    step_times: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE_OR_RUN [...]")] = ()
    """Measured times of the same model: runs' folders, JSON of `mgray bench step`, {"64x32x224x224": 0.95} (seconds of a step of 64 clips
    on one device), or {"workers": 8, "step_seconds": {...}} (of global batches on 8). Several, on different numbers of devices, tell how a
    step shrinks with its clips."""
    decode_rate: Annotated[str, tyro.conf.arg(metavar="RATE_OR_FILE_OR_RUN")] = ""
    """Clips a second that a core decodes: a number, JSON by shape or of `mgray bench feed`, or a run whose shards are measured now."""
    cores: float = 0.0
    """CPU cores of the cluster; 0 is as many as decoding needs, which then bounds nothing."""
    device_cores: float | None = None
    """Cores that a device keeps busy itself; default: those of a worker of the run of --step-times, if it trained on CPUs, else 0."""
    tflops: float = 40.0
    """TFLOP/s that a device is taken to do where there are no --step-times."""
    network_gbit: float = 100.0
    """Gbit/s that each device can send to other nodes."""
    latency_us: float = 20.0
    """Microseconds of a message from one node to another."""
    node_gpus: Annotated[int, tyro.conf.arg(metavar="INT")] = 8
    """Devices of a node."""
    node_gbit: float = 1000.0
    """Gbit/s that each device can send to another of its node: NVLink has 1200 (V100) to 3600 (H100), PCIe 4 x16 some 200."""
    node_latency_us: float = 5.0
    """Microseconds of a message from one device to another of its node."""
    optimise: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Propose the cycle factors that are fastest there (accuracy is not predicted)."""
    model: ModelSection = field(default_factory=ModelSection)
    data: DataArguments = field(default_factory=DataArguments)
    plan: PlanSpec = field(default_factory=PlanSpec)


def _plan(arguments: Sequence[str]) -> None:
    base, rest, dataset = PlanArguments(), list(arguments), DATASETS["kinetics400"]
    file, settings = _pyslowfast(rest)
    if file is not None:
        base = PlanArguments(plan=read_plan_spec(file, settings))
    elif (name := take_name(rest)) is not None:
        run = workload(name)
        dataset = dataset_of(name) or dataset
        data = DataArguments(path=run.data.path, videos=run.data.videos, val_fraction=run.data.val_fraction)
        base = PlanArguments(plan=run.plan, data=data, model=run.model)
    command = parse(PlanArguments, rest, PLAN, default=base)
    if not 0 < command.data.val_fraction < 1:
        raise ConfigError("data.val_fraction", command.data.val_fraction, "is outside (0, 1)", "use e.g. 0.2")
    unread = [argument for argument in command.overrides if argument not in settings or file is None]
    if unread:
        raise ConfigError(
            "argument", unread[0], "is not expected here",
            "write NAME first (mgray plan NAME --json); KEY VALUE pairs (SOLVER.BASE_LR 0.2) need --pyslowfast FILE",
        )  # fmt: skip
    check_model(command.model)
    plan = Plan.compile(command.plan, _num_samples(command.data, dataset))
    baseline = plan.baseline()
    cluster, clip_flops = _cluster(command)
    if cluster is not None:
        plan, baseline = (on_workers(part, cluster.gpus) for part in (plan, baseline))
    found = None if cluster is None else forecast(plan, cluster, clip_flops)
    proposals = optimise(plan, cluster, clip_flops) if command.optimise and cluster is not None else ()
    if command.plot is not None:
        from mgray.report.schedule import plot_schedule

        plot_schedule(plan, command.plot)
    if command.json:
        tree = plan.to_json(baseline)
        if found is not None:
            tree["forecast"] = found.to_json()
        if proposals:
            tree["proposals"] = [proposal.to_json() for proposal in proposals]
        print(json_module.dumps(tree, indent=2))
        return
    _print_table(plan, plan.table(baseline))
    if command.data.num_samples is None and not command.data.path:
        print(
            f"{dataset.num_train:,} clips are those of {dataset.title}; for yours give --data.num-samples N or --data.path DIR"
        )
    if found is not None:
        print()
        _print_table(plan, forecast_table(plan.phases, found))
    if proposals:
        print()
        _print_proposals(proposals)


def _cluster(command: PlanArguments) -> tuple[Cluster | None, Callable[[ClipShape], float]]:
    """The cluster that is described, and operations by clip shape; torch counts them."""
    if not (command.gpus or command.step_times or command.optimise):
        _refuse_alone(command)
        return None, lambda _: 0.0
    for name in ("gpus", "cores", "device_cores", "latency_us", "node_latency_us"):
        if (getattr(command, name) or 0) < 0:
            raise ConfigError(name, getattr(command, name), "must not be negative", "give 0 or more")
    for name in ("tflops", "network_gbit", "node_gpus", "node_gbit"):
        if not getattr(command, name) > 0:
            raise ConfigError(name, getattr(command, name), "must be positive", "give a number above 0")
    from mgray.model.flops import CLASSES, ModelCost

    measured, decode = _measured(command)
    cost = ModelCost(command.model, CLASSES)
    device_cores = command.device_cores
    if device_cores is None:
        device_cores = 0.0 if measured is None else measured.device_cores
    cores = command.cores or math.inf
    gpus = command.gpus or (1 if measured is None else measured.timing.workers[-1])
    cluster = Cluster(
        gpus=gpus,
        cores=cores,
        device_cores=device_cores,
        step=None if measured is None else measured.timing,
        device_flops=command.tflops * 1e12,
        decode=decode,
        network=Network(
            gradient_bytes=4.0 * cost.parameters,
            norm_layers=cost.norm_layers,
            bandwidth=command.network_gbit / 8 * 1e9,
            latency_s=command.latency_us * 1e-6,
            node_latency_s=command.node_latency_us * 1e-6,
            node_gpus=command.node_gpus,
            node_bandwidth=command.node_gbit / 8 * 1e9,
        ),
        opening_s=0.0 if measured is None else measured.opening_s(decode, cores, gpus),
        start_s=0.0 if measured is None else measured.start_s(gpus),
    )
    return cluster, cost.clip_flops


def _refuse_alone(command: PlanArguments) -> None:
    """Refuse an option that describes a cluster for which nothing is predicted."""
    for name in CLUSTER_OPTIONS:
        if getattr(command, name) != getattr(PlanArguments(), name):
            raise ConfigError(
                name, getattr(command, name), "says something of a cluster, and none is predicted for",
                "give --gpus N or --step-times, too",
            )  # fmt: skip


def _measured(command: PlanArguments) -> tuple[StepTimes | None, Timing | None]:
    """Step and decode times, where they are given."""
    if not (command.step_times or command.decode_rate):
        return None, None
    from mgray.bench.timing import read_decode_times, read_step_times

    return (
        read_step_times(command.step_times, command.model) if command.step_times else None,
        read_decode_times(command.decode_rate) if command.decode_rate else None,
    )


def _pyslowfast(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The PySlowFast file that is named, and the KEY VALUE pairs; both must be known before the rest can be parsed."""
    file, settings = None, []
    tokens = iter(arguments)
    for token in tokens:
        option, _, value = token.partition("=")
        if option == "--pyslowfast" and (value := value or next(tokens, "")):
            file = Path(value)
        elif re.fullmatch(PYSLOWFAST_KEY, token):
            settings += [token, *itertools.islice(tokens, 1)]
    return file, settings


def _num_samples(data: DataArguments, dataset: Dataset) -> int:
    if data.num_samples is not None:
        return data.num_samples
    if not data.path:
        return dataset.num_train
    from mgray.check import is_shards
    from mgray.data.annotations import read_annotations
    from mgray.data.shards.shard_set import ShardSet

    if is_shards(data.path):
        return ShardSet.open(data.path).num_samples("train")
    samples = read_annotations(data.path, val_fraction=data.val_fraction, videos=data.videos).samples
    return sum(sample.split == "train" for sample in samples)


def _print_table(plan: Plan, table: PlanTable) -> None:
    console = _console()
    table = table.within(console.width)
    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in table.head:
        grid.add_column(name, justify="right", overflow="fold")
    for phase, following, row in zip(plan.phases, [*plan.phases[1:], None], table.rows, strict=True):
        grid.add_row(*row, end_section=following is not None and following.stage != phase.stage)
    console.print(grid)
    console.print()
    for line in table.totals:
        console.print(line, highlight=False, soft_wrap=True)


def _print_proposals(proposals: Sequence[Proposal]) -> None:
    """The plan's own cycles and faster ones."""
    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in ("cycles", LONG, "short", "steps", "full", "time", "speed-up", "bound"):
        left = name in ("cycles", LONG, "short")
        grid.add_column(
            name, justify="left" if left else "right", no_wrap=name != LONG, min_width=8 if name == LONG else None
        )
    for proposal, following in zip(proposals, [*proposals[1:], None], strict=True):
        plan = proposal.plan
        shapes = {f"{phase.frames}x{phase.crop}": None for phase in plan.phases}
        short = " ".join(f"{factor:.2f}" for factor in plan.spec.short_factors) if plan.spec.short_cycle else "off"
        grid.add_row(
            proposal.title,
            " ".join(shapes),
            short,
            f"{plan.num_steps:,}",
            f"{proposal.finest_share:.1%}",
            duration(proposal.forecast.seconds),
            f"{proposal.forecast.speed_up:.2f}x",
            proposal.forecast.bound,
            end_section=following is not None and proposal.title in GIVEN and following.title not in GIVEN,
        )
    console = _console()
    console.print(grid)
    console.print()
    for line in (
        "same epochs, nothing coarser, at least as many clips at the full shape (full) as with the cycles above the line; "
        "ACCURACY IS NOT PREDICTED: train to know it",
        next((f"{p.title}: {p.options}" for p in proposals if p.title not in GIVEN), "no other cycles keep to that"),
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


PLAN = Command(
    name="plan",
    arguments="[NAME]",
    summary="Print a schedule: shapes, batches, learning rates, steps; with --gpus or --step-times what it takes on a cluster.",
    examples=(
        "mgray plan kinetics400_slowfast_r50",
        "mgray plan folder --data.path videos/ --plan.epoch-factor 1.0 --plot schedule.png",
        "mgray plan kinetics400_slowfast_r50 --gpus 8 --decode-rate 150 --cores 128",
        "mgray plan demo --step-times runs/one_worker runs/two_workers --decode-rate runs/one_worker --cores 2 --optimise",
        "mgray plan --pyslowfast SLOWFAST_8x8_R50.yaml MULTIGRID.LONG_CYCLE True --data.num-samples 240436 --json",
    ),
    workloads=True,
    run=_plan,
)
