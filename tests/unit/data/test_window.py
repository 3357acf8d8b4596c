"""Where windows begin and end, to the pixel."""

import numpy as np
import pytest

from mgray.data.window import Window


def ramp(width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Planes whose pixels tell their columns."""
    y, half = np.arange(width, dtype=np.uint8), np.arange((width + 1) // 2, dtype=np.uint8)
    chroma = np.tile(half, ((height + 1) // 2, 1))
    return np.tile(y, (height, 1)), chroma, chroma


def picture_of(window: Window) -> np.ndarray:
    ((_, picture),) = window.close(1 << 27)
    return picture


def first_row(box: tuple[float, float, float, float], size: tuple[int, int], out: int, flip: bool) -> list[int]:
    window = Window(1, box, size, (out, out), flip)
    window.put(0, ramp(*size))
    return picture_of(window)[0].tolist()


@pytest.mark.parametrize("width", [95, 96, 97])
def test_a_mirrored_frame_begins_with_its_last_column(width: int) -> None:
    row = first_row((0.0, 0.0, float(width), 64.0), (width, 64), width, True)
    assert row == [*reversed(range(width)), *[0] * (width % 2)]
    window = Window(1, (0.0, 0.0, float(width), 64.0), (width, 64), (width, 64), True)
    y, *_ = ramp(width, 64)
    window.put(0, ramp(width, 64))
    rgb = np.repeat(picture_of(window)[:64, :, None], 3, axis=2)[None]
    out = np.empty((1, 64, width, 3), np.uint8)
    window.resize(np.ascontiguousarray(rgb), out)
    np.testing.assert_array_equal(out[0, :, :, 0], y[:, ::-1])


def test_a_mirrored_window_begins_where_the_window_ends() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        side = rng.integers(192, 241)
        span = 168 / side * 192
        left = rng.uniform() * (255 - span)
        box = (left, 0.0, left + span, span)
        assert first_row(box, (255, 192), 168, True)[0] == round(left + span) - 1
        assert first_row(box, (255, 192), 168, False)[0] == round(left)


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_that_is_not_resized_by_much_is_resized_all_the_same(flip: bool) -> None:
    """torch takes equal sizes for nothing to resize."""
    window = Window(1, (0.0, 0.0, 63.5, 63.5), (96, 64), (64, 64), flip)
    assert window.frame_size[0] > 64
