"""What documents show: command lines, snippets, links and tables; and whether ours can do what they say."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import mgray.cli
from mgray.cli.main import COMMANDS
from workloads import DATASETS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md")]
"""The log tells of commands as they were."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ELSEWHERE = ("k400/", "ssv2/", "charades/", "ucf101/", "hmdb51/", "/shared/")


class _Parsed(Exception):
    """The options were read."""


def blocks_in(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a Markdown text, of the languages named or of all."""
    return [block for language, block in _FENCE.findall(text) if not languages or language in languages]


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of each `mgray COMMAND ...` line in a Markdown text's fenced blocks."""
    for block in blocks_in(text):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*mgray (\w+.*)", line)
            if match and match[1].split()[0] in COMMANDS:
                arguments = shlex.split(match[1], comments=True)
                ends = [place for place, word in enumerate(arguments) if word in ("|", ">", "&&", ";", "&")]
                yield arguments[: ends[0]] if ends else arguments


def why_not_run(arguments: Sequence[str]) -> str:
    """What a command needs that a test has not; empty where it is run on tiny videos."""
    values = [word for word in arguments[1:] if not word.startswith("-")]
    if any("://" in value or value == "auto" or value.startswith("/shared/") for value in values):
        return "a cluster or a bucket"
    if arguments[0] in ("demo", "bench", "tune") or "demo" in values or "runs/demo" in values:
        return "minutes"
    names = [value.removeprefix("runs/").partition("_")[0] for value in values]
    if any(value.startswith(_ELSEWHERE) for value in values) or (
        arguments[0] != "plan" and any(name in DATASETS for name in names)
    ):
        return "a published dataset"
    if any(value.endswith((".pyth", ".pth")) for value in values if value != values[-1]) or "slowfast.pt" in values:
        return "another library's weights"
    return ""


def check_parses(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command read its options and nothing more; fails with its own message where it cannot."""
    for module in pkgutil.iter_modules(mgray.cli.__path__):
        loaded = importlib.import_module(f"mgray.cli.{module.name}")
        parse = getattr(loaded, "parse", None)
        if callable(parse) and module.name != "parse":

            def parsed(*args: object, parse: object = parse, **named: object) -> None:
                parse(*args, **named)  # type: ignore[operator]
                raise _Parsed

            monkeypatch.setattr(loaded, "parse", parsed)
    with pytest.raises(_Parsed):
        COMMANDS[arguments[0]].run(list(arguments[1:]))


def links_in(text: str) -> list[str]:
    """Targets of links and pictures outside fenced blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))


def anchors_in(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def tables_in(text: str) -> list[list[str]]:
    """The tables outside fenced blocks, as their lines."""
    lines = _FENCE.sub("", text).splitlines()
    tables: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]
