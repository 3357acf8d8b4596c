"""The picture of a confusion matrix for few and for many classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgray.errors import ConfigError
from mgray.report.confusion import plot_confusion


def matrix(count: int, right: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(0)
    found = np.zeros((count, count), np.int64)
    for row in range(count):
        shares = rng.dirichlet(np.full(count, 0.05)) * (1 - right)
        shares[row] += right
        found[row] = rng.multinomial(50, shares)
    return found


@pytest.mark.parametrize("count", [1, 4, 40, 400])
def test_a_picture_of_any_number_of_classes(tmp_path: Path, count: int) -> None:
    out = tmp_path / "new" / "confusion.svg"
    plot_confusion(matrix(count), [f"class {i} <&$a$_{{>" for i in range(count)], out)
    text = out.read_text()
    assert "Most frequent confusions" in text
    assert ("number of the class" in text) == (count == 400)
    assert "as " in text if count > 1 else "none" in text


def test_classes_without_videos_are_drawn(tmp_path: Path) -> None:
    found = np.zeros((3, 3), np.int64)
    plot_confusion(found, ["a", "b", "c"], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_a_name_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plot = "):
        plot_confusion(matrix(2), ["a", "b"], tmp_path / "c.bmp")
