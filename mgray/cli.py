"""The `mgray` command line; thin: it parses, calls, and prints one line where a value cannot work.

torch, ray and matplotlib are imported by the command that needs them, so that `mgray plan` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json as json_module
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mgray.config import Run
from mgray.errors import ConfigError, MgrayError
from mgray.plan import Plan, PlanSpec
from mgray.pyslowfast import read_plan_spec
from workloads import WORKLOADS

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
KINETICS_CLIPS = 240_436

Arguments = TypeVar("Arguments")


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """What the plan needs to know of the dataset."""

    num_samples: int = 0
    """Clips in the training set; 0 counts those of data.path, or takes Kinetics-400's 240,436."""
    path: str = ""
    """Shards from `mgray ingest`, to count their clips."""


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    overrides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """KEY VALUE pairs over the PySlowFast configuration, e.g. MULTIGRID.EPOCH_FACTOR 1.0."""
    pyslowfast: Path | None = None
    """A PySlowFast YAML file to read the schedule from; --plan.* options apply over it."""
    json: bool = False
    """Print JSON instead of a table."""
    plot: Path | None = None
    """Draw the schedule into this PNG."""
    data: DataArguments = field(default_factory=DataArguments)
    plan: PlanSpec = field(default_factory=PlanSpec)


@dataclass(frozen=True, kw_only=True)
class IngestArguments:
    source: tyro.conf.Positional[str]
    """A folder of videos (`[split/]class/clip.mp4`) or a list (CSV `path,label[,split,group]`, or `path label` lines)."""
    out: tyro.conf.Positional[str]
    """Where the shards go: a folder, or an s3:// or gs:// address."""
    short_side: int = 256
    """Short side in pixels to store videos at; smaller ones stay as they are."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the source names no split."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    verbose: bool = False
    """Show Ray's own logs here rather than write them to a file."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    run: tyro.conf.Positional[str]
    """A run's folder (its last checkpoint), or one checkpoint of it."""
    data: str | None = None
    """Other shards to evaluate on; default: those the run was trained on."""


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, the baseline first."""
    out: Path = Path("report")
    """Folder for report.html and its pictures."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    data: str = ""
    """Your own videos instead of the clips that come with mgray: a folder or a list, as for `mgray ingest`."""
    out: Path = Path("demo")
    """Folder for shards, runs and the report."""


def _plan(arguments: Sequence[str]) -> None:
    """Print a schedule: phases with shapes, batches, learning rates and steps; totals beside the baseline's."""
    base, rest = PlanArguments(), list(arguments)
    file = next((value for option, value in zip(rest, rest[1:], strict=False) if option == "--pyslowfast"), None)
    if file is not None:
        command = _parse(PlanArguments, rest, "plan [NAME]", default=base)
        base = PlanArguments(pyslowfast=command.pyslowfast, plan=read_plan_spec(Path(file), command.overrides))
    elif rest and not rest[0].startswith("-"):
        run = _workload(rest.pop(0))
        base = PlanArguments(plan=run.plan, data=DataArguments(path=run.data.path))
    command = _parse(PlanArguments, rest, "plan [NAME]", default=base)
    if command.overrides and command.pyslowfast is None:
        raise ConfigError(
            "NAME", command.overrides[0], "stands after the options", "write `mgray plan NAME`, then options; KEY VALUE pairs need --pyslowfast FILE",
        )  # fmt: skip
    plan = Plan.compile(command.plan, _num_samples(command.data))
    if command.plot is not None:
        from mgray.report.schedule import plot_schedule

        plot_schedule(plan, command.plot)
    if command.json:
        print(json_module.dumps(plan.to_json(), indent=2))
    else:
        print(plan.describe())


def _num_samples(data: DataArguments) -> int:
    if data.num_samples or not data.path:
        return data.num_samples or KINETICS_CLIPS
    from mgray.data.shard import ShardSet

    return ShardSet.open(data.path).num_samples("train")


def _ingest(arguments: Sequence[str]) -> None:
    """Turn a folder or list of videos into shards that training reads fast."""
    command = _parse(IngestArguments, arguments, "ingest")
    from mgray.trainer import ingest_with_progress

    ingest_with_progress(
        command.source, command.out, short_side=command.short_side, val_fraction=command.val_fraction
    )


def _train(arguments: Sequence[str]) -> None:
    """Train a workload; the same name again goes on where that run stopped."""
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        base = _workload(rest.pop(0))
    elif set(rest) & {"-h", "--help"}:
        base = Run()
    else:
        raise ConfigError("NAME", "", "is missing", f"write `mgray train NAME`, one of {', '.join(WORKLOADS)}")
    command = _parse(TrainArguments, rest, "train NAME", default=TrainArguments(run=base))
    from mgray.trainer import train

    train(command.run, verbose=command.verbose)


def _eval(arguments: Sequence[str]) -> None:
    """Validate a run's last checkpoint, or the one given."""
    command = _parse(EvalArguments, arguments, "eval")
    from mgray.trainer import evaluate_run

    print(json_module.dumps(evaluate_run(command.run, data=command.data), indent=2))


def _report(arguments: Sequence[str]) -> None:
    """Compare runs: one table, pictures and a self-contained report.html."""
    command = _parse(ReportArguments, arguments, "report")
    from mgray.report import write_report

    print(write_report(command.runs, command.out))


def _bench(arguments: Sequence[str]) -> None:
    """Measure: `mgray bench loop` is the Ray-fed loop beside a bare torch loop on tensors in memory."""
    from mgray.bench.loop import bench_loop

    print(json_module.dumps(bench_loop(), indent=2))


def _demo(arguments: Sequence[str]) -> None:
    """Train a small SlowFast on real clips by the baseline and by multigrid, and compare them."""
    command = _parse(DemoArguments, arguments, "demo")
    from mgray.demo import demo

    demo(data=command.data or None, out=command.out)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "plan": _plan,
    "ingest": _ingest,
    "train": _train,
    "eval": _eval,
    "report": _report,
    "bench": _bench,
    "demo": _demo,
}
EXAMPLES = {
    "plan": (
        "mgray plan kinetics400_slowfast_r50",
        "mgray plan folder --data.num-samples 5000 --plan.epoch-factor 1.0 --plot schedule.png",
        "mgray plan --pyslowfast SLOWFAST_8x8_R50.yaml MULTIGRID.LONG_CYCLE True --json",
    ),
    "ingest": ("mgray ingest videos/ shards/ --short-side 256",),
    "train": ("mgray train folder --data.path shards/ --scale.workers 2 --plan.epoch-factor 1.0",),
    "eval": ("mgray eval runs/folder",),
    "report": ("mgray report runs/folder_baseline runs/folder --out report/",),
    "bench": ("mgray bench loop",),
    "demo": ("mgray demo", "mgray demo --data videos/ --out demo/"),
}


def _overview() -> str:
    lines = ["mgray: multigrid training of video models on Ray", "", "usage: mgray COMMAND [...]", "", "commands"]
    lines += [f"  {name:7} {command.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", "examples", *(f"  {examples[0]}" for examples in EXAMPLES.values())]
    return "\n".join([*lines, "", f"workloads: {', '.join(WORKLOADS)}", "", "mgray COMMAND --help says more."])


def _description(command: str) -> str:
    text = f"{COMMANDS[command].__doc__}\n\n" + "\n".join(EXAMPLES[command])
    if command in ("plan", "train"):
        text += "\n\nNAME is one of:\n" + "\n".join(f"{n}: {(make.__doc__ or '')}" for n, make in WORKLOADS.items())
    return text


def _workload(name: str) -> Run:
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, n=1)
        hint = f"did you mean {near[0]}? there are {', '.join(WORKLOADS)}" if near else f"use one of {', '.join(WORKLOADS)}"
        raise ConfigError("NAME", name, "is no workload", hint)
    return WORKLOADS[name]()


def _parse(kind: type[Arguments], arguments: Sequence[str], usage: str, default: Arguments | None = None) -> Arguments:
    """`arguments` as a `kind`; tyro's boxed errors become one line.

    Raises:
        ConfigError: an unknown option, or a value that does not parse.
        SystemExit: after `--help`.
    """
    command = usage.split()[0]
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed, unknown = tyro.cli(
                kind, args=arguments, prog=f"mgray {usage}", description=_description(command), return_unknown_args=True,
                **({} if default is None else {"default": default}),
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _parse_error(captured.getvalue(), arguments, command) from None
    if unknown:
        raise _unknown_option(unknown[0].partition("=")[0], kind, command)
    return parsed


def _parse_error(box: str, arguments: Sequence[str], command: str) -> ConfigError:
    """The first section of tyro's box as an error that names option and value."""
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] == "│"]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    problem = " ".join(lines[:rule])
    match = re.search(r"--[\w.-]+", problem)
    if match is None:
        return ConfigError(f"mgray {command}", " ".join(arguments), problem, f"see mgray {command} --help")
    option = match[0]
    problem = re.sub(rf"^Error parsing {option}: | for argument '{option}'", "", problem)
    problem = re.sub(r"invalid literal for int.*", "is no whole number", problem)
    problem = re.sub(r"could not convert string to float.*", "is no number", problem)
    values = []
    for token in arguments[arguments.index(option) + 1 :] if option in arguments else ():
        if token.startswith("--"):
            break
        values.append(token)
    return ConfigError(option.lstrip("-"), " ".join(values), problem.rstrip("."), f"see mgray {command} --help")


def _unknown_option(token: str, kind: type[Any], command: str) -> ConfigError:
    options = _options(kind, "--")
    given = token.replace("_", "-")
    near = [option for option in options if option.rpartition(".")[2] == given.lstrip("-")]
    near = near or difflib.get_close_matches(given, options, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see mgray {command} --help"
    return ConfigError(f"mgray {command}", token, "is no option" if token.startswith("-") else "is not expected", hint)


def _options(kind: type[Any], prefix: str) -> list[str]:
    """The options that tyro makes of a dataclass's fields."""
    options = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            options += _options(typing.cast(type, hint), prefix if name == "run" else f"{prefix}{name.replace('_', '-')}.")
        else:
            options.append(f"{prefix}{name.replace('_', '-')}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a value that cannot work)."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("--help", "-h", "help"):
            print(_overview())
        elif name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean mgray {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
            raise ConfigError("COMMAND", name, "is no command", hint)
        else:
            COMMANDS[name](rest)
    except MgrayError as error:
        print(f"mgray: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("mgray: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
