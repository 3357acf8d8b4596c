"""What all commands share: options from dataclasses, and one line where a value cannot work."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from mgray.config import AMENDMENTS, Run
from mgray.errors import ConfigError
from mgray.plan.state import ScheduleState
from workloads import FORMS, WORKLOADS, find

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
HELP_WIDTH = 80
SOME_WORKLOADS = "demo, folder, kinetics400_slowfast_r50"
FLAGS = ("--json", "--verbose", "--optimise")
"""Options without a value, besides those of a run."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command: what help says of it, and what it does."""

    name: str
    arguments: str
    """As in its usage line."""
    summary: str
    examples: tuple[str, ...]
    run: Callable[[Sequence[str]], None]
    workloads: bool = False
    """Whether NAME may be a workload: its help lists them."""

    def help_end(self) -> str:
        """What stands below the options in its help."""
        lines = ["examples", *(f"  {line}" for line in self.examples)]
        return "\n".join(["", *lines, *(["", *workload_lines()] if self.workloads else ())])


def workload_lines() -> list[str]:
    names = [name for name in WORKLOADS if not name.endswith("_baseline")]
    width = max(map(len, names)) + 2
    texts = {name: (WORKLOADS[name].__doc__ or "").splitlines()[0].removesuffix(": both cycles.") for name in names}
    lines = [line for name, text in texts.items() for line in entry(name, text, width)]
    forms = textwrap.wrap(FORMS, HELP_WIDTH, initial_indent="  ", subsequent_indent="  ")
    return ["workloads (NAME)", *lines, *forms]


def entry(name: str, text: str, width: int) -> list[str]:
    """A name and what is said of it in a column beside it, `width` after the names begin."""
    return textwrap.wrap(
        text,
        HELP_WIDTH,
        initial_indent=f"  {name:{width}}",
        subsequent_indent=" " * (width + 2),
        break_on_hyphens=False,
    )


def take_name(arguments: list[str]) -> str | None:
    """Remove NAME from the arguments: the first where it is no option, else a workload's name that is no option's value."""
    if arguments and not arguments[0].startswith("-"):
        return arguments.pop(0)
    for place in range(1, len(arguments)):
        before = arguments[place - 1]
        if find(arguments[place]) is not None and (not before.startswith("-") or is_flag(before) or "=" in before):
            return arguments.pop(place)
    return None


def is_flag(option: str) -> bool:
    """Whether an option takes no value, so that NAME may follow it, e.g. `--plan.no-short-cycle`."""
    section, dot, name = option.lstrip("-").replace("-", "_").partition(".")
    kind = typing.get_type_hints(Run).get(section)
    if not dot or not dataclasses.is_dataclass(kind):
        return option in FLAGS
    return typing.get_type_hints(kind).get(name.removeprefix("no_")) is bool


def base_run(arguments: list[str], remedy: str) -> tuple[str, Run]:
    """Remove NAME from the arguments; it, and the run that options apply over (with --help none need be named).

    Raises:
        ConfigError: it is missing; `remedy` says what to write.
    """
    if (name := take_name(arguments)) is not None:
        return name, workload(name)
    if set(arguments) & {"-h", "--help"}:
        return "", Run()
    raise ConfigError("NAME", "", "is missing", remedy)


def workload(name: str) -> Run:
    """The workload of this name, or the run in a JSON file such as a search's best.json.

    Raises:
        ConfigError: there is no such workload or file, or it holds no run.
    """
    if name.endswith(".json"):
        return Run.from_json({key: value for key, value in _run_file(name).items() if key != AMENDMENTS})
    run = find(name)
    if run is None:
        near = difflib.get_close_matches(name, list(WORKLOADS), n=1)
        remedy = f"did you mean {near[0]}? " if near else ""
        raise ConfigError("NAME", name, "is no workload", f"{remedy}mgray --help lists them, e.g. {SOME_WORKLOADS}")
    return run


def amendments_in(name: str) -> ScheduleState | None:
    """The amendments that a run's JSON file carries; None of a workload, and where there are none.

    Raises:
        ConfigError: they cannot be read.
    """
    if not name.endswith(".json") or (tree := _run_file(name).get(AMENDMENTS)) is None:
        return None
    try:
        return ScheduleState.from_json(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("NAME", name, f"holds no amendments ({error!r})", "remove them, or search again") from None


def _run_file(name: str) -> dict[str, Any]:
    remedy = "name a file such as best.json of mgray tune"
    try:
        tree = json.loads(Path(name).read_text())
    except OSError as error:
        raise ConfigError(
            "NAME", name, f"cannot be read ({error.strerror})", "name a workload or a run's JSON"
        ) from None
    except ValueError:
        raise ConfigError("NAME", name, "is no JSON", remedy) from None
    if not isinstance(tree, dict):
        raise ConfigError("NAME", name, "is no run's JSON", remedy)
    return tree


def hint(given: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(names), n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"there are {', '.join(names)}"


def demand(name: str, value: object, usage: str) -> None:
    if not value:
        raise ConfigError(name, "", "is missing", f"write {usage}")


def parse(
    kind: type[Arguments], arguments: Sequence[str], command: Command, default: Arguments | None = None
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
                prog=_program(kind, command),
                description=command.summary,
                default=kind() if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:
            raise _parse_error(captured.getvalue(), arguments, command.name) from None
        print(command.help_end())
        raise
    if unknown:
        raise _unknown_argument(unknown[0].partition("=")[0], kind, command.name)
    return parsed


def _program(kind: type[Any], command: Command) -> str:
    """The beginning of a usage line, to which tyro adds the arguments that it parses."""
    hints = typing.get_type_hints(kind, include_extras=True).values()
    is_parsed = any(tyro.conf.Positional in getattr(hint, "__metadata__", ()) for hint in hints)
    words = command.arguments if command.workloads or not is_parsed else ""
    return f"mgray {command.name} {words}".strip()


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
    options = option_names(kind, "--")
    name = token.lstrip("-").replace("_", "-")
    near = [option for option in options if option.rpartition(".")[2].lstrip("-") == name]
    near = near or difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see mgray {command} --help"
    return ConfigError("option", token, f"is no option of mgray {command}", hint)


def option_names(kind: type[Any], prefix: str) -> list[str]:
    """The options that tyro makes of a dataclass's fields."""
    options: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        option = f"{prefix}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            options += option_names(typing.cast(type[Any], hint), prefix if hint is Run else f"{option}.")
        else:
            options.append(option)
    return options
