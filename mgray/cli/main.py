"""The `mgray` command line; thin: it parses, calls, and prints one line where a value cannot work.

torch, ray and matplotlib are imported by the command that needs them, so that `mgray plan` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mgray.cli.audit import AUDIT
from mgray.cli.bench import BENCH
from mgray.cli.convert import CONVERT
from mgray.cli.ctl import CTL
from mgray.cli.demo import DEMO
from mgray.cli.evaluate import EVAL, PREDICT
from mgray.cli.ingest import INGEST, SHARDS
from mgray.cli.parse import EXIT_BAD_INPUT, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, Command, entry, hint, workload_lines
from mgray.cli.plan import PLAN
from mgray.cli.report import REPORT
from mgray.cli.train import TRAIN
from mgray.cli.tune import TUNE
from mgray.errors import ConfigError, MgrayError

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (PLAN, INGEST, SHARDS, TRAIN, CTL, EVAL, PREDICT, CONVERT, REPORT, AUDIT, BENCH, TUNE, DEMO)
}


def _overview() -> str:
    lines = ["mgray: multigrid training of video models on Ray", "", "usage: mgray COMMAND [...]", "", "commands"]
    lines += [line for name, command in COMMANDS.items() for line in entry(name, command.summary, 8)]
    lines += ["", "examples", *(f"  {command.examples[0]}" for command in COMMANDS.values()), ""]
    return "\n".join([*lines, *workload_lines(), "", "mgray COMMAND --help lists a command's options."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a value that cannot work)."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("--help", "-h", "help"):
            print(_overview())
        elif name not in COMMANDS:
            raise ConfigError("COMMAND", name, "is no command of mgray", hint(name, COMMANDS))
        else:
            COMMANDS[name].run(rest)
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
