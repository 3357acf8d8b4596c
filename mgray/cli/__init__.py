"""The command line: one module for each command."""

from mgray.cli.main import main as main
