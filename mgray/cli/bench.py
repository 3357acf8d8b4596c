"""`mgray bench`: measurements beside what others do."""

from __future__ import annotations

import dataclasses
import json as json_module
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mgray.cli.parse import Command, parse, workload
from mgray.config import DataSection, ModelSection
from mgray.errors import ConfigError
from mgray.model import MODELS, check_model


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    workload: str = "demo"
    """The workload whose model and shapes are measured."""
    workers: int = 1
    """Ray workers that train."""
    rounds: int = 5
    """Times that both loops are measured, in turn."""


@dataclass(frozen=True, kw_only=True)
class BenchFeedArguments:
    data: Annotated[str, tyro.conf.arg(metavar="DIR_OR_CSV")] = ""
    """Your own videos, as for `mgray ingest`; default: generated clips of 340x256 pixels and 10 s, like those of Kinetics."""
    spans: typing.Literal["varied", "kept"] = "varied"
    """What a coarse grid covers of a video, as plan.spans: varied (paper), or kept as at the base shape."""
    levels: tuple[int, ...] = (256, 226, 160)
    """Short sides in pixels of the pyramid, falling."""
    enlarge: float = 1.0
    """How much a level coarser than the finest may be enlarged, as data.enlarge."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fewer videos, clips and rounds: an answer within a minute."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the rates into this file (.png, .svg or .pdf)."""
    ray: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure too what a rank's Ray Data pipeline adds to decoding (block assembly, object store, loader)."""
    gop: int = 250
    """Frames of the longest GOP of generated clips; 250 is what x264 and ffmpeg take by default."""


@dataclass(frozen=True, kw_only=True)
class BenchQualityArguments:
    data: Annotated[str, tyro.conf.arg(metavar="DIR_OR_CSV")] = ""
    """Your own videos, as for `mgray ingest`; default: generated clips of 340x256 pixels and 10 s."""
    spans: typing.Literal["varied", "kept"] = "varied"
    """What a coarse grid covers of a video, as plan.spans: varied (paper), or kept as at the base shape."""
    levels: tuple[int, ...] = (256, 226, 160)
    """Short sides in pixels of the pyramid, falling."""
    enlarge: float = 1.0
    """How much a level coarser than the finest may be enlarged, as data.enlarge."""
    clips: int = 12
    """Clips of each grid."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class BenchStepArguments:
    workload: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """The workload whose model and batches are measured, and those of its baseline; default: demo, with --model kinetics400_slowfast_r50."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Another model on those batches: a name as of model.name, with _rDEPTH for another depth than 50 (slowfast_r50, slow_r101, s3d)."""
    device: typing.Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto is a GPU where torch sees one."""
    share: Annotated[int, tyro.conf.arg(metavar="WORKERS")] = 1
    """Measure what one of so many workers has of each batch; nothing is sent between workers."""
    scale_down: int = 1
    """Divide the clips of each batch by this, where the whole would take too long."""
    rounds: int = 5
    """Times that both are measured, in turn; the median counts."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """As train.compile; a graph is made before its batch is timed."""
    budget: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = math.inf
    """Begin no further batch or round after so many seconds, and print what is done (as Ctrl-C does); batches come smallest first."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON, for mgray plan NAME --step-times FILE, instead of a table."""


@dataclass(frozen=True, kw_only=True)
class BenchNormArguments:
    device: typing.Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto is a GPU where torch sees one."""
    rounds: int = 15
    """Times that both are measured, in turn; the median counts."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


def _bench(arguments: Sequence[str]) -> None:
    what, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in BENCHES else ("", arguments)
    if not what and set(rest) & {"-h", "--help"}:
        print(_overview())
        return
    if not what:
        raise ConfigError(
            "BENCHMARK",
            " ".join(rest[:1]),
            "is no benchmark",
            "write mgray bench loop, step, norm, feed, quality or scale",
        )
    BENCHES[what][0](rest)


def _overview() -> str:
    lines = ["usage: mgray bench BENCHMARK [...]", "", BENCH.summary, "", "benchmarks"]
    lines += [f"  {name:9}{summary}" for name, (_, summary) in BENCHES.items()]
    return "\n".join([*lines, BENCH.help_end(), "", "mgray bench BENCHMARK --help lists a benchmark's options."])


def _command(what: str) -> Command:
    """A benchmark as a command of its own."""
    name = f"bench {what}"
    examples = tuple(example for example in BENCH.examples if example.startswith(f"mgray {name} "))
    return Command(name=name, arguments="", summary=BENCHES[what][1], examples=examples, run=BENCHES[what][0])


def _bench_loop(arguments: Sequence[str]) -> None:
    command = parse(BenchArguments, arguments, _command("loop"))
    workload(command.workload)
    for name, value in (("workers", command.workers), ("rounds", command.rounds)):
        if value < 1:
            raise ConfigError(name, value, "must be at least 1", "give a positive whole number")
    from mgray.bench.loop import bench_loop

    result = bench_loop(workers=command.workers, rounds=command.rounds, workload=command.workload)
    print(json_module.dumps(result, indent=2))


def _bench_step(arguments: Sequence[str]) -> None:
    command = parse(BenchStepArguments, arguments, _command("step"))
    for name in ("share", "scale_down", "rounds"):
        if getattr(command, name) < 1:
            raise ConfigError(name, getattr(command, name), "must be at least 1", "give a positive whole number")
    if not command.budget > 0:
        raise ConfigError("budget", command.budget, "must be positive", "give seconds")
    run = workload(command.workload or ("kinetics400_slowfast_r50" if command.model else "demo"))
    if command.model:
        run = dataclasses.replace(run, model=_model(command.model, run.model))
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, compile=command.compile))
    check_model(run.model)
    from mgray.bench.step import measure
    from mgray.check import check_compiler

    if command.compile:
        check_compiler()

    result = measure(
        run, command.device, workers=command.share, rounds=command.rounds, scale_down=command.scale_down, budget_s=command.budget
    )  # fmt: skip
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        Console().print(result.table())
    if result.interrupted:
        raise KeyboardInterrupt


def _model(name: str, section: ModelSection) -> ModelSection:
    """The section of a model such as slowfast_r50, of published width, with a workload's dropout."""
    base, _, depth = name.rpartition("_r")
    if name in MODELS or base not in MODELS or not depth.isdecimal():
        return ModelSection(name=name, dropout=section.dropout)
    return ModelSection(name=base, depth=int(depth), dropout=section.dropout)


def _bench_norm(arguments: Sequence[str]) -> None:
    command = parse(BenchNormArguments, arguments, _command("norm"))
    if command.rounds < 1:
        raise ConfigError("rounds", command.rounds, "must be at least 1", "give a positive whole number")
    from mgray.bench.norm import measure

    result = measure(command.device, command.rounds)
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        Console().print(result.table())


def _bench_feed(arguments: Sequence[str]) -> None:
    command = parse(BenchFeedArguments, arguments, _command("feed"))
    if command.gop < 1:
        raise ConfigError("gop", command.gop, "must be at least 1", "give a positive whole number")
    DataSection(levels=command.levels, enlarge=command.enlarge)  # refuses what cannot be
    from mgray.bench.feed import FeedBench, bench_feed
    from mgray.bench.feed_view import plot_feed, print_feed
    from mgray.report.picture import check_picture

    if command.plot is not None:
        check_picture(command.plot)
    wanted = FeedBench(
        data=command.data, spans=command.spans, levels=command.levels, enlarge=command.enlarge, gop=command.gop, ray=command.ray
    )  # fmt: skip
    result = bench_feed(wanted.quick() if command.quick else wanted)
    if command.plot is not None:
        plot_feed(result, command.plot)
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        print_feed(result)


def _bench_quality(arguments: Sequence[str]) -> None:
    command = parse(BenchQualityArguments, arguments, _command("quality"))
    if command.clips < 1:
        raise ConfigError("clips", command.clips, "must be at least 1", "give a positive whole number")
    from mgray.bench.quality import bench_quality, quality_rows

    base = workload("kinetics400_slowfast_r50")
    section = dataclasses.replace(base.data, levels=command.levels, enlarge=command.enlarge)
    run = dataclasses.replace(base, plan=dataclasses.replace(base.plan, spans=command.spans), data=section)
    found = bench_quality(command.data, run, clips=command.clips)
    if command.json:
        print(json_module.dumps([row.to_json() for row in found], indent=2))
        return
    from rich.table import Table

    head, *rows = quality_rows(found)
    table = Table(*head, title="PSNR in dB against the full-size source, resized as torchvision does")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@dataclass(frozen=True, kw_only=True)
class BenchScaleArguments:
    ranks: tuple[int, ...] = (1, 8, 128, 1024)
    """World sizes."""
    steps: int = 400
    """Random steps of the schedule that are measured for each."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


def _bench_scale(arguments: Sequence[str]) -> None:
    command = parse(BenchScaleArguments, arguments, _command("scale"))
    for name, values, least in (("ranks", command.ranks, 1), ("steps", (command.steps,), 32)):
        for value in values:
            if value < least:
                raise ConfigError(name, value, f"must be at least {least}", f"give {least} or more")
    from mgray.bench.scale import bench_scale, print_scale

    rows = bench_scale(workload("kinetics400_slowfast_r50"), command.ranks, command.steps)
    if command.json:
        print(json_module.dumps([row.to_json() for row in rows], indent=2))
    else:
        print_scale(rows, command.steps)


BENCHES: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "loop": (_bench_loop, "The training loop, fed by Ray, beside a bare torch loop of the same model."),
    "step": (_bench_step, "A step of each shape of a schedule, beside the plain module."),
    "norm": (_bench_norm, "Grouped batch norm beside torch's."),
    "feed": (_bench_feed, "Decoding beside PyAV and other readers."),
    "quality": (_bench_quality, "The pyramid's pictures beside their sources'."),
    "scale": (_bench_scale, "What coordination costs on up to 1,024 ranks."),
}
"""What each benchmark runs and measures."""


BENCH = Command(
    name="bench",
    arguments="loop|step|norm|feed|quality|scale",
    summary="Measure mgray beside what others do: its loop, its steps, its decoding and more.",
    examples=(
        "mgray bench loop --workers 2 --rounds 9",
        "mgray bench step --workload kinetics400_slowfast_r50 --share 8 --json > steps.json",
        "mgray bench step --model slowfast_r50 --device cuda",
        "mgray bench step --workload demo --budget 60",
        "mgray bench norm --device cpu",
        "mgray bench feed --quick",
        "mgray bench quality --data videos/ --levels 256 128",
        "mgray bench feed --data videos/ --plot feed.png --json",
        "mgray bench scale --ranks 1 8 128 1024",
    ),
    run=_bench,
)
