"""The `mgray` command line; thin: it parses, calls, and prints one line where a value cannot work.

torch, ray and matplotlib are imported by the command that needs them, so that `mgray plan` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import json as json_module
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mgray.config import DataSection, ModelSection, Run
from mgray.errors import ConfigError, MgrayError, VideoError
from mgray.plan import Plan, PlanSpec, PlanTable
from mgray.pyslowfast import read_plan_spec
from workloads import WORKLOADS

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
KINETICS_CLIPS = 240_436
PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
PYSLOWFAST_KEY = r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*"
FLAGS = ("--json", "--verbose")
"""Options without a value, which NAME may follow."""
PLAINER = (
    (r"^Error parsing OPTION: ", ""),
    (r"invalid literal for int.*", "is no whole number"),
    (r"could not convert string to float.*", "is no number"),
    (r"Could not find valid parse for arguments.*", "does not parse"),
    (r"Missing value for argument 'OPTION'\. Expected (\d+) values\.", r"needs \1 value(s)"),
    (r"invalid choice .* for argument 'OPTION'\. Expected one of \((.*?),?\)\.", r"is no choice (there are \1)"),
)
"""tyro's words, and ours."""

Arguments = TypeVar("Arguments")


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What the plan needs to know of the dataset."""

    num_samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Clips in the training set; default: those of data.path, else Kinetics-400's 240,436."""
    path: str = ""
    """Shards from `mgray ingest`, a folder of videos or a list, to count their clips."""
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
    step_times: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON with measured seconds of a step by global batch, e.g. {"64x32x224x224": 0.95}: predicts wall-clock time."""
    data: DataArguments = field(default_factory=DataArguments)
    plan: PlanSpec = field(default_factory=PlanSpec)


@dataclass(frozen=True, kw_only=True)
class IngestArguments:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """A folder of videos (`[split/]class/clip.mp4`) or a list (CSV `path,label[,split,group]`, or `path label` lines)."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = ""
    """Folder for the shards."""
    levels: tuple[str, ...] = ("256", "226", "160")
    """Short sides in pixels to store videos at, falling (smaller videos stay as they are); auto reads them off --workload."""
    workload: Annotated[str, tyro.conf.arg(metavar="NAME")] = "folder"
    """The schedule that --levels auto reads."""
    passthrough: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Store only tables of the videos' own packets: quick, no bytes of video, slower to train from; the videos must stay in place."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Encode a few videos to estimate size and time, and write nothing."""
    limit_s: float = 600.0
    """Seconds of decoding after which a video counts as broken."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the source names no split."""
    max_broken: float = 0.01
    """Share of videos that may fail to decode: they are left out and listed, above it is an error."""


@dataclass(frozen=True, kw_only=True)
class ShardsArguments:
    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ACTION")] = ""
    """`info` shows what a folder of shards holds, `verify` reads every file and compares its checksum."""
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = ""
    """Shards from `mgray ingest`, in a folder or at an address such as s3://bucket/shards."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show Ray's own logs here rather than in its files only."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """A run's folder (its newest checkpoint), or one checkpoint of it."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Other shards to evaluate on; default: those the run was trained on."""
    views: Annotated[str, tyro.conf.arg(metavar="CLIPSxCROPS")] = "1x1"
    """Clips spread over each video, times 1 centre crop or 3 along the longer side, e.g. 10x3; their scores are pooled."""
    pool: typing.Literal["mean", "max"] = "mean"
    """A video's scores: the mean or the maximum of its views' softmax (max for Charades)."""
    short_side: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 0
    """Short side that videos are resized to before they are cropped; 0 is plan.jitter_min (the crop, where that is larger)."""
    crop: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 0
    """Width and height of a crop; 0 is plan.crop."""
    workers: int = 0
    """Ray tasks that share the videos, with the same result; 0 evaluates in this process."""
    per_class: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print accuracy, average precision and number of videos of each class too, the worst first."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the confusion matrix into this file (.png, .svg or .pdf)."""
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write each video's class and its five likeliest ones into this Parquet file."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = ""
    """A run's folder (its newest checkpoint), or one checkpoint of it."""
    videos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO [VIDEO ...]")] = ()
    """Video files."""
    every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0
    """From the beginning of a clip to that of the next; 0 sets them end to end."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of lines."""


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")] = ""
    """A PySlowFast checkpoint (.pyth), a 2D ResNet of torchvision (needs --model), or weights of ours: a file or a run's folder."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = ""
    """File to write: weights for --model.init, or from weights of ours a PySlowFast checkpoint."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """The network that a 2D ResNet is inflated to: slow, i3d or i3d_nln; what PySlowFast trained is recognised without it."""


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Folders of runs, the baseline first."""
    out: Path = Path("report")
    """Folder for report.html and its pictures."""


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
class DemoArguments:
    data: str = ""
    """Your own videos instead of the clips that come with mgray: a folder or a list, as for `mgray ingest`."""
    out: Path = Path("demo-out")
    """Folder for shards, runs and the report."""


def _plan(arguments: Sequence[str]) -> None:
    """Print a schedule: shapes, batches, learning rates, steps, and the predicted speed-up."""
    base, rest = PlanArguments(), list(arguments)
    file, settings = _pyslowfast(rest)
    if file is not None:
        base = PlanArguments(plan=read_plan_spec(file, settings))
    elif (name := _take_name(rest)) is not None:
        run = _workload(name)
        base = PlanArguments(plan=run.plan, data=DataArguments(path=run.data.path, val_fraction=run.data.val_fraction))
    command = _parse(PlanArguments, rest, "plan", default=base)
    if not 0 < command.data.val_fraction < 1:
        raise ConfigError("data.val_fraction", command.data.val_fraction, "is outside (0, 1)", "use e.g. 0.2")
    unread = [argument for argument in command.overrides if argument not in settings or file is None]
    if unread:
        raise ConfigError(
            "argument", unread[0], "is not expected here",
            "write NAME first (mgray plan NAME --json); KEY VALUE pairs (SOLVER.BASE_LR 0.2) need --pyslowfast FILE",
        )  # fmt: skip
    plan = Plan.compile(command.plan, _num_samples(command.data))
    table = plan.table(None if command.step_times is None else _read_step_times(command.step_times))
    if command.plot is not None:
        from mgray.report.schedule import plot_schedule

        plot_schedule(plan, command.plot)
    if command.json:
        print(json_module.dumps(plan.to_json(), indent=2))
    else:
        _print_table(plan, table)
        if command.data.num_samples is None and not command.data.path:
            print(
                f"{KINETICS_CLIPS:,} clips are Kinetics-400's; for yours give --data.num-samples N or --data.path DIR"
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


def _num_samples(data: DataArguments) -> int:
    if data.num_samples is not None:
        return data.num_samples
    if not data.path:
        return KINETICS_CLIPS
    from mgray.check import is_shards
    from mgray.data.annotations import read_annotations
    from mgray.data.shard import ShardSet

    if is_shards(data.path):
        return ShardSet.open(data.path).num_samples("train")
    samples = read_annotations(data.path, val_fraction=data.val_fraction).samples
    return sum(sample.split == "train" for sample in samples)


def _read_step_times(path: Path) -> dict[str, float]:
    try:
        times = json_module.loads(path.read_text())
        return {str(batch): float(seconds) for batch, seconds in times.items()}
    except OSError as error:
        raise ConfigError("step_times", str(path), f"cannot be read ({error.strerror})", "name a JSON file") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            "step_times", str(path), "is no JSON of batches and seconds", 'write {"64x32x224x224": 0.95, ...}'
        ) from None


def _print_table(plan: Plan, table: PlanTable) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in table.head:
        grid.add_column(name, justify="right", overflow="fold")
    for phase, following, row in zip(plan.phases, [*plan.phases[1:], None], table.rows, strict=True):
        grid.add_row(*row, end_section=following is not None and following.stage != phase.stage)
    console.print(grid)
    console.print()
    for line in table.totals:
        console.print(line, highlight=False, soft_wrap=True)


def _ingest(arguments: Sequence[str]) -> None:
    """Turn a folder or list of videos into shards that training reads fast."""
    command = _parse(IngestArguments, arguments, "ingest")
    _demand("SOURCE", command.source, "mgray ingest SOURCE OUT")
    _demand("OUT", command.out, "mgray ingest SOURCE OUT")
    if not command.limit_s > 0:
        raise ConfigError("limit_s", command.limit_s, "must be positive", "give seconds, e.g. 600")
    levels = _levels(command)
    if command.dry_run:
        from mgray.data.estimate import estimate
        from mgray.display import print_estimate

        found = estimate(command.source, levels, val_fraction=command.val_fraction, limit_s=command.limit_s)
        print_estimate(found, os.cpu_count() or 1)
        return
    from mgray.trainer import ingest_with_progress

    ingest_with_progress(
        command.source,
        command.out,
        levels=levels,
        val_fraction=command.val_fraction,
        max_broken=command.max_broken,
        limit_s=command.limit_s,
    )


def _levels(command: IngestArguments) -> tuple[int, ...]:
    from mgray.data.manifest import SOURCE

    if command.passthrough:
        return SOURCE
    if command.levels == ("auto",):
        from mgray.data.levels import levels_of

        run = _workload(command.workload)
        return levels_of(run.plan, run.data.enlarge)
    try:
        return tuple(int(level) for level in command.levels)
    except ValueError:
        raise ConfigError(
            "levels",
            " ".join(command.levels),
            "are no whole numbers",
            "give e.g. --levels 256 226 160, or --levels auto",
        ) from None


def _shards(arguments: Sequence[str]) -> None:
    """Look into ingested shards: `mgray shards info DIR`, or compare all checksums: `mgray shards verify DIR`."""
    command = _parse(ShardsArguments, arguments, "shards")
    if command.action not in ("info", "verify"):
        raise ConfigError(
            "ACTION", command.action, "is no action", "write mgray shards info DIR or mgray shards verify DIR"
        )
    _demand("DIR", command.path, f"mgray shards {command.action} DIR")
    from mgray.data.shard import ShardSet

    shards = ShardSet.open(command.path)
    if command.action == "verify":
        shards.verify()
        print(f"{command.path}: all files are as they were written")
    elif command.json:
        print(json_module.dumps(shards.summary(), indent=2))
    else:
        from mgray.display import print_shards

        print_shards(shards)


def _train(arguments: Sequence[str]) -> None:
    """Train a workload; the same name again goes on where that run stopped."""
    rest = list(arguments)
    if (name := _take_name(rest)) is not None:
        base = _workload(name)
    elif set(rest) & {"-h", "--help"}:
        base = Run()
    else:
        raise ConfigError("NAME", "", "is missing", f"write mgray train NAME, one of {', '.join(WORKLOADS)}")
    command = _parse(TrainArguments, rest, "train", default=TrainArguments(run=base))
    from mgray.check import check_run

    check_run(command.run)
    from mgray.trainer import train

    train(command.run, verbose=command.verbose)


def _eval(arguments: Sequence[str]) -> None:
    """Score a run's newest checkpoint, or the one given, on its validation videos."""
    command = _parse(EvalArguments, arguments, "eval")
    _demand("RUN", command.run, "mgray eval RUN")
    from mgray.data.clip import Views

    views = Views.parse(command.views)
    from mgray.evaluation.run import Viewing, check_output, evaluate_run
    from mgray.evaluation.view import print_evaluation, progress_bar
    from mgray.report.confusion import plot_confusion
    from mgray.report.picture import check_picture
    from mgray.train.scores import confusion, write_predictions

    viewing = Viewing(
        views=views, pool=command.pool, short_side=command.short_side, crop=command.crop, workers=command.workers
    )
    if command.plot is not None:
        check_picture(command.plot)
    if command.predictions is not None:
        check_output("predictions", command.predictions)
    with progress_bar("evaluate") as show:
        result = evaluate_run(command.run, viewing, data=command.data, on_progress=show)
    if command.plot is not None:
        plot_confusion(confusion(result.found, len(result.classes)), result.classes, command.plot)
    if command.predictions is not None:
        write_predictions(result.found, result.paths, result.classes, command.predictions)
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        print_evaluation(result, per_class=command.per_class)


def _predict(arguments: Sequence[str]) -> None:
    """Say what videos show over time, by a run's newest checkpoint or the one given."""
    command = _parse(PredictArguments, arguments, "predict")
    _demand("CHECKPOINT", command.checkpoint, "mgray predict CHECKPOINT VIDEO [VIDEO ...]")
    _demand("VIDEO", command.videos, "mgray predict CHECKPOINT VIDEO [VIDEO ...]")
    if not 0 <= command.every < float("inf"):
        raise ConfigError("every", command.every, "must not be negative", "give seconds, e.g. 0.5")
    from mgray.evaluation.predict import Predictor
    from mgray.evaluation.view import print_prediction, progress_bar

    predictor = Predictor.load(command.checkpoint)
    trees: list[dict[str, Any]] = []
    failed = False
    for video in command.videos:
        try:
            with progress_bar(Path(video).name) as show:
                found = predictor.predict(video, every_s=command.every, on_progress=show)
        except VideoError as error:
            failed = True
            print(f"mgray: {error}", file=sys.stderr)
            trees.append({"video": video, "error": error.problem})
            continue
        if command.json:
            trees.append(found.to_json())
        else:
            print_prediction(found)
    if command.json:
        print(json_module.dumps(trees, indent=2))
    if failed:
        raise SystemExit(EXIT_BAD_INPUT)


def _convert(arguments: Sequence[str]) -> None:
    """Turn weights of PySlowFast or a 2D ResNet into ours for --model.init, or ours into PySlowFast's."""
    command = _parse(ConvertArguments, arguments, "convert")
    _demand("IN", command.source, "mgray convert IN OUT")
    _demand("OUT", command.out, "mgray convert IN OUT")
    from mgray.train.initial import convert

    weights = convert(command.source, command.out, name=command.model)
    plain = dataclasses.asdict(ModelSection())
    settings = [
        f"--model.{key.replace('_', '-')} {value}"
        for key, value in dataclasses.asdict(weights.section).items()
        if key not in ("init", "dropout") and (key == "name" or value != plain[key])
    ]
    millions = sum(value.numel() for key, value in weights.state.items() if key.endswith(("weight", "bias"))) / 1e6
    if weights.section.name == "slowfast" and weights.section.slow_frames == "centred":
        print(
            "mgray: note: these weights saw centred frames in the slow pathway, PySlowFast will show them others; "
            "--model.slow-frames spread trains for those"
        )
    print(f"{command.out}: {millions:.2f} M parameters, {weights.num_classes} classes; settings: {' '.join(settings)}")


def _report(arguments: Sequence[str]) -> None:
    """Compare runs: one table, pictures and a self-contained report.html."""
    command = _parse(ReportArguments, arguments, "report")
    _demand("RUN", command.runs, "mgray report RUN [RUN ...]")
    from mgray.report import print_comparison, read_run, write_report

    print_comparison([read_run(run) for run in command.runs])
    print(write_report(command.runs, command.out))


def _bench(arguments: Sequence[str]) -> None:
    """Measure: `mgray bench loop` sets the loop beside bare torch, `feed` the decoding beside PyAV and others, `quality` the pyramid beside its sources."""
    what, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in BENCHES else ("", arguments)
    if not what and not set(rest) & {"-h", "--help"}:
        raise ConfigError("BENCHMARK", " ".join(rest[:1]), "is no benchmark", "write mgray bench loop, feed or quality")
    BENCHES[what or "loop"](rest)


def _bench_loop(arguments: Sequence[str]) -> None:
    command = _parse(BenchArguments, arguments, "bench")
    _workload(command.workload)
    for name, value in (("workers", command.workers), ("rounds", command.rounds)):
        if value < 1:
            raise ConfigError(name, value, "must be at least 1", "give a positive whole number")
    from mgray.bench.loop import bench_loop

    result = bench_loop(workers=command.workers, rounds=command.rounds, workload=command.workload)
    print(json_module.dumps(result, indent=2))


def _bench_feed(arguments: Sequence[str]) -> None:
    command = _parse(BenchFeedArguments, arguments, "bench")
    if command.gop < 1:
        raise ConfigError("gop", command.gop, "must be at least 1", "give a positive whole number")
    DataSection(levels=command.levels, enlarge=command.enlarge)  # refuses what cannot be
    from mgray.bench.feed import FeedBench, bench_feed
    from mgray.bench.feed_view import plot_feed, print_feed
    from mgray.report.picture import check_picture

    if command.plot is not None:
        check_picture(command.plot)
    wanted = FeedBench(
        data=command.data, spans=command.spans, levels=command.levels, enlarge=command.enlarge, gop=command.gop
    )  # fmt: skip
    result = bench_feed(wanted.quick() if command.quick else wanted)
    if command.plot is not None:
        plot_feed(result, command.plot)
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        print_feed(result)


def _bench_quality(arguments: Sequence[str]) -> None:
    command = _parse(BenchQualityArguments, arguments, "bench")
    if command.clips < 1:
        raise ConfigError("clips", command.clips, "must be at least 1", "give a positive whole number")
    from mgray.bench.quality import bench_quality, quality_rows

    base = _workload("kinetics400_slowfast_r50")
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


BENCHES: dict[str, Callable[[Sequence[str]], None]] = {
    "loop": _bench_loop,
    "feed": _bench_feed,
    "quality": _bench_quality,
}


def _demo(arguments: Sequence[str]) -> None:
    """Train a small SlowFast on real clips by the baseline and by multigrid, and compare them."""
    command = _parse(DemoArguments, arguments, "demo")
    from mgray.demo import demo

    demo(data=command.data or None, out=command.out)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "plan": _plan,
    "ingest": _ingest,
    "shards": _shards,
    "train": _train,
    "eval": _eval,
    "predict": _predict,
    "convert": _convert,
    "report": _report,
    "bench": _bench,
    "demo": _demo,
}
USAGE = {
    "plan": "[NAME]",
    "ingest": "SOURCE OUT",
    "shards": "info|verify DIR",
    "train": "NAME",
    "eval": "RUN",
    "predict": "CHECKPOINT VIDEO [VIDEO ...]",
    "convert": "IN OUT",
    "report": "RUN [RUN ...]",
    "bench": "loop|feed|quality",
    "demo": "",
}
EXAMPLES = {
    "plan": (
        "mgray plan kinetics400_slowfast_r50",
        "mgray plan folder --data.path videos/ --plan.epoch-factor 1.0 --plot schedule.png",
        "mgray plan --pyslowfast SLOWFAST_8x8_R50.yaml MULTIGRID.LONG_CYCLE True --data.num-samples 240436 --json",
    ),
    "ingest": (
        "mgray ingest videos/ shards/ --levels 256 226 160",
        "mgray ingest videos/ shards/ --dry-run",
        "mgray ingest videos/ index/ --passthrough",
    ),
    "shards": ("mgray shards info shards/", "mgray shards verify shards/"),
    "train": (
        "mgray train folder --data.path videos/",
        "mgray train folder --data.path shards/ --scale.workers 2 --plan.epoch-factor 1.0 --name mine",
    ),
    "eval": (
        "mgray eval runs/folder --views 10x3",
        "mgray eval runs/folder --workers 4 --per-class --plot confusion.png --predictions predictions.parquet",
    ),
    "predict": ("mgray predict runs/folder video.mp4", "mgray predict runs/folder videos/*.mp4 --every 0.5 --json"),
    "convert": (
        "mgray convert SLOWFAST_8x8_R50.pyth slowfast.pt",
        "mgray convert resnet50.pth i3d.pt --model i3d",
        "mgray convert runs/folder folder.pyth",
    ),
    "report": ("mgray report runs/folder_baseline runs/folder --out report/",),
    "bench": (
        "mgray bench loop --workers 2 --rounds 9",
        "mgray bench feed --quick",
        "mgray bench quality --data videos/ --levels 256 128",
        "mgray bench feed --data videos/ --plot feed.png --json",
    ),
    "demo": ("mgray demo", "mgray demo --data videos/ --out demo-videos/"),
}


def _overview() -> str:
    lines = ["mgray: multigrid training of video models on Ray", "", "usage: mgray COMMAND [...]", "", "commands"]
    lines += [f"  {name:8}{command.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", "examples", *(f"  {examples[0]}" for examples in EXAMPLES.values()), ""]
    return "\n".join([*lines, *_workload_lines(), "", "mgray COMMAND --help lists a command's options."])


def _workload_lines() -> list[str]:
    width = max(map(len, WORKLOADS)) + 2
    return ["workloads (NAME)", *(f"  {name:{width}}{make.__doc__}" for name, make in WORKLOADS.items())]


def _help_end(command: str) -> str:
    """What stands below the options in a command's help."""
    lines = ["examples", *(f"  {line}" for line in EXAMPLES[command])]
    return "\n".join(["", *lines, *(["", *_workload_lines()] if command in ("plan", "train") else ())])


def _take_name(arguments: list[str]) -> str | None:
    """Remove NAME from the arguments: the first where it is no option, else a workload's name that is no option's value."""
    if arguments and not arguments[0].startswith("-"):
        return arguments.pop(0)
    for place in range(1, len(arguments)):
        before = arguments[place - 1]
        if arguments[place] in WORKLOADS and (not before.startswith("-") or before in FLAGS or "=" in before):
            return arguments.pop(place)
    return None


def _workload(name: str) -> Run:
    if name not in WORKLOADS:
        raise ConfigError("NAME", name, "is no workload", _hint(name, WORKLOADS))
    return WORKLOADS[name]()


def _hint(given: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(names), n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(names)}"


def _demand(name: str, value: object, usage: str) -> None:
    if not value:
        raise ConfigError(name, "", "is missing", f"write {usage}")


def _parse(
    kind: type[Arguments], arguments: Sequence[str], command: str, default: Arguments | None = None
) -> Arguments:
    """`arguments` as a `kind`; tyro's boxed errors become one line.

    Raises:
        ConfigError: an unknown option, or a value that does not parse.
        SystemExit: after `--help`.
    """
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed, unknown = tyro.cli(
                kind,
                args=arguments,
                prog=f"mgray {command} {USAGE[command]}".strip(),
                description=COMMANDS[command].__doc__,
                default=kind() if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:
            raise _parse_error(captured.getvalue(), arguments, command) from None
        print(_help_end(command))
        raise
    if unknown:
        raise _unknown_argument(unknown[0].partition("=")[0], kind, command)
    return parsed


def _parse_error(text: str, arguments: Sequence[str], command: str) -> ConfigError:
    """The first section of tyro's box as an error that names option and value."""
    lines = [line.strip(" │╭╮╰╯") for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"[─-]{3,}|─ .*", line)]
    first, last = (*rules, len(lines), len(lines))[:2]
    problem = " ".join(lines[first + 1 : last])
    match = re.search(r"--[\w.-]+", problem)
    if match is None:
        return ConfigError("arguments", " ".join(arguments), problem, f"see mgray {command} --help")
    option = match[0].rstrip(".")
    for pattern, plain in PLAINER:
        problem = re.sub(pattern.replace("OPTION", re.escape(option)), plain, problem)
    return ConfigError(
        option.lstrip("-").replace("-", "_"), _given(option, arguments), problem, f"see mgray {command} --help"
    )


def _given(option: str, arguments: Sequence[str]) -> str:
    """The values that were given to an option."""
    values: list[str] = []
    for place, token in enumerate(arguments):
        name, _, value = token.partition("=")
        if name.replace("_", "-") == option.replace("_", "-"):
            after = itertools.takewhile(lambda item: not item.startswith("--"), arguments[place + 1 :])
            values = [value] if value else list(after)
    return " ".join(values)


def _unknown_argument(token: str, kind: type[Any], command: str) -> ConfigError:
    if not token.startswith("-"):
        return ConfigError("argument", token, "is not expected here", f"see mgray {command} --help")
    options = _options(kind, "--")
    name = token.lstrip("-").replace("_", "-")
    near = [option for option in options if option.rpartition(".")[2].lstrip("-") == name]
    near = near or difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see mgray {command} --help"
    return ConfigError("option", token, f"is no option of mgray {command}", hint)


def _options(kind: type[Any], prefix: str) -> list[str]:
    """The options that tyro makes of a dataclass's fields."""
    options: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        option = f"{prefix}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            options += _options(typing.cast(type[Any], hint), prefix if hint is Run else f"{option}.")
        else:
            options.append(option)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a value that cannot work)."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("--help", "-h", "help"):
            print(_overview())
        elif name not in COMMANDS:
            raise ConfigError("COMMAND", name, "is no command of mgray", _hint(name, COMMANDS))
        else:
            COMMANDS[name](rest)
        sys.stdout.flush()
    except MgrayError as error:
        print(f"mgray: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("mgray: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, e.g. `mgray plan NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
