"""Pictures as files: their names are checked before long work, and a file that cannot be written is one line."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mgray.errors import ConfigError
from mgray.report.plots import PNG_DPI

FORMATS = (".png", ".svg", ".pdf")


def check_picture(out: Path) -> None:
    """Refuse a picture's name before anything is computed, and make its folder.

    Raises:
        ConfigError: an unknown ending, or a folder that cannot be made.
    """
    if out.suffix.lower() not in FORMATS:
        raise ConfigError("plot", str(out), "is no picture's name", f"end it in {', '.join(FORMATS)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None


def save_picture(figure: Figure, out: Path) -> None:
    """Write a figure; the file's ending says the format (PNG at 150 dpi, SVG or PDF).

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        figure.savefig(out, dpi=PNG_DPI)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError("plot", str(out), f"cannot be written ({error.strerror})", "name another file")
