"""Run goes through JSON unchanged, refuses what it does not know, and names what is wrong."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mgray.config import DataSection, FeedSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.errors import ConfigError
from mgray.plan import PlanSpec
from workloads import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_json_goes_there_and_back(name: str) -> None:
    run = WORKLOADS[name]()
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"plan": {"frame": 8}}, "plan.frame"),
        ({"plan": {"frames": "8"}}, "plan.frames"),
        ({"plan": {"frames": True}}, "plan.frames"),
        ({"plan": {"frames": 0}}, "plan.frames"),
        ({"plan": {"long_cycle": "once"}}, "plan.long_cycle"),
        ({"plan": {"lr_steps": 3}}, "plan.lr_steps"),
        ({"plan": {"long_factors": [[0.5]]}}, "plan.long_factors"),
        ({"data": {"mean": [0.5, 0.5]}}, "data.mean"),
        ({"plan": []}, "plan"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_bad_trees_are_named(tree: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Run.from_json(tree)
    assert caught.value.field.rstrip(".") == field


def test_whole_numbers_are_floats_where_floats_are_meant() -> None:
    assert Run.from_json({"plan": {"lr": 1}}).plan.lr == 1.0
    assert type(Run.from_json({"plan": {"lr": 1}}).plan.lr) is float


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (DataSection, "val_fraction", 1.0),
        (DataSection, "fps", -1.0),
        (DataSection, "std", (0.2, 0.0, 0.2)),
        (ModelSection, "width", 0),
        (ModelSection, "dropout", 1.0),
        (TrainSection, "momentum", 0.0),
        (TrainSection, "weight_decay", float("nan")),
        (TrainSection, "label_smoothing", 1.0),
        (TrainSection, "mixup", -0.1),
        (TrainSection, "cutmix", float("inf")),
        (TrainSection, "randaugment", 31),
        (TrainSection, "randaugment_growth", -0.5),
        (TrainSection, "betas", (0.9, 1.0)),
        (TrainSection, "ema", 1.0),
        (TrainSection, "evals", 0),
        (TrainSection, "micro_groups", -1),
        (FeedSection, "decoders", -1),
        (ScaleSection, "workers", 0),
        (ScaleSection, "cpus", 0.0),
    ],
)
def test_sections_name_the_field(section: type[Any], field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"\.{field} = "):
        section(**{field: value})


def test_digest_ignores_what_does_not_change_the_result() -> None:
    run = Run(data=DataSection(path="a"))
    same = dataclasses.replace(
        run, name="other", storage="s", data=DataSection(path="b"), scale=ScaleSection(workers=5), feed=FeedSection(ahead=2)
    )  # fmt: skip
    assert run.digest() == same.digest()
    for changed in (
        dataclasses.replace(run, plan=PlanSpec(lr=0.2)),
        dataclasses.replace(run, data=DataSection(flip=False)),
        dataclasses.replace(run, model=ModelSection(depth=18)),
        dataclasses.replace(run, train=TrainSection(seed=1)),
        dataclasses.replace(run, train=TrainSection(ema=0.9)),
    ):
        assert changed.digest() != run.digest()
