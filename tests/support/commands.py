"""Command lines as documents show them, and whether ours parses them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence

import pytest

import mgray.cli
from mgray.cli.main import COMMANDS

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class _Parsed(Exception):
    """The options were read."""


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of each `mgray COMMAND ...` line in a Markdown text's fenced blocks."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*mgray (\w+.*)", line)
            if match and match[1].split()[0] in COMMANDS:
                arguments = shlex.split(match[1], comments=True)
                ends = [place for place, word in enumerate(arguments) if word in ("|", ">", "&&", ";", "&")]
                yield arguments[: ends[0]] if ends else arguments


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
