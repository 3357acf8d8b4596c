"""The picture of a schedule can be drawn for every kind of schedule, and shows what the plan holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.report.schedule import _draw, plot_schedule

SPECS = {
    "kinetics": PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True, warmup_epochs=34.0),
    "baseline": PlanSpec(),
    "short": PlanSpec(short_cycle=True),
    "long": PlanSpec(long_cycle="stage"),
    "progressive": PlanSpec(long_cycle="run", lr_policy="cosine"),
    "no_rate_at_first": PlanSpec(lr_policy="cosine", lr_steps=(0,), warmup_epochs=1.0, warmup_start_lr=0.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_every_schedule_can_be_drawn(name: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / f"{name}.png"
    plot_schedule(Plan.compile(SPECS[name], 5000), out)
    with Image.open(out) as picture:
        assert picture.size == (1425, 1080)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_the_bands_show_the_plan() -> None:
    plan = Plan.compile(SPECS["kinetics"], 240_436)
    frames, crop, clips, rate = _draw(plan).axes
    assert [axes.get_ylabel() for axes in (frames, crop, clips, rate)] == [
        "frames", "crop, px", "clips a step", "learning rate",
    ]  # fmt: skip
    assert list(frames.get_yticks()) == [8, 16, 32]
    assert list(crop.get_yticks()) == [112, 158, 224]
    assert list(clips.get_yticks()) == [64, 128, 256, 512, 1024]
    assert [text.get_text() for text in frames.texts] == ["stage 0", "stage 1", "stage 2", "fine-tuning"]
    assert frames.get_xlim()[1] == pytest.approx(100 / plan.cost().voxel_ratio)
    (line,) = rate.lines[:1]
    assert max(line.get_ydata()) == pytest.approx(0.8)


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    plan = Plan.compile(PlanSpec(), 100)
    (tmp_path / "file").touch()
    for out in (tmp_path / "plan.bmp", tmp_path / "file" / "plan.png"):
        with pytest.raises(ConfigError, match="plot = "):
            plot_schedule(plan, out)
