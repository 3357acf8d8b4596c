"""Runs that start from weights: of another program, or of another run, with a head for other classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgray.check import check_run
from mgray.config import DataSection, ModelSection, Run
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import CheckpointError, MgrayError
from mgray.model import MODELS, build_model
from mgray.model.convert import Weights, read_weights, write_weights
from mgray.plan import PlanSpec
from mgray.train.initial import convert, initial_line, load_initial, read_initial
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from tests.support.networks import undrawn
from tests.support.pyslowfast import random_state, shapes
from tests.support.shards import write_shards

SMALL = ModelSection(depth=10, width=8, beta_inv=4, alpha=2, fusion_kernel=3, dropout=0.0)
PLAN = PlanSpec(frames=4, crop=16, batch=2, stride=1, jitter_min=18, jitter_max=24, epochs=1, lr=0.01, lr_steps=(0,), lr_factors=(1.0,))  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(3)
    return Weights(section=SMALL, state=build_model(SMALL, 7).state_dict())


@pytest.fixture
def file(weights: Weights, tmp_path: Path) -> str:
    path = str(tmp_path / "weights.pt")
    write_weights(weights, path)
    return path


def with_init(path: str, **changes: Any) -> ModelSection:
    return dataclasses.replace(SMALL, init=path, **changes)


def test_all_weights_are_loaded(weights: Weights, file: str) -> None:
    model = build_model(SMALL, 7)
    assert load_initial(model, with_init(file)) == f"weights start from {file}"
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights.state[key])


def test_a_head_for_other_classes_starts_afresh_and_says_so(weights: Weights, file: str) -> None:
    model = build_model(SMALL, 4)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    line = load_initial(model, with_init(file))
    assert line == f"weights start from {file}; the head starts afresh, for 4 classes instead of 7"
    assert line == initial_line(with_init(file), 4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key.startswith("classifier") else weights.state)[key])


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"slowfast"}))
def test_the_head_of_every_network_is_known(name: str, tmp_path: Path) -> None:
    section = ModelSection(name=name, depth=50, width=8, init=str(tmp_path / "weights.pt"))
    write_weights(Weights(section=section, state=undrawn(section, 3).state_dict()), section.init)
    assert "for 5 classes instead of 3" in initial_line(section, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"width": 12},
            r"other shapes .*fast_stages\.0\.0\.body\.1\.bias \(2,\), not \(3,\).*slow_stem\.1\.weight \(8,\), not \(12,\)\)",
        ),
        ({"depth": 18}, r"missing keys fast_stages\.0\.1\.body\.0\.weight"),
        ({"name": "slow"}, r"unknown keys fast_stages.*missing keys stages\.0"),
        ({"beta_inv": 2}, r"give the --model\.\* settings of those weights \(slowfast, depth 10\)"),
    ],
)
def test_weights_of_another_model_are_refused(file: str, changes: dict[str, Any], said: str) -> None:
    for refuse in (initial_line, lambda section, classes: load_initial(build_model(section, classes), section)):
        with pytest.raises(CheckpointError, match=said) as caught:
            refuse(with_init(file, **changes), 7)
        assert str(caught.value).startswith("model.init = ") and "\n" not in str(caught.value)


def test_settings_that_no_shape_tells_are_said(file: str) -> None:
    assert initial_line(with_init(file, alpha=4), 7).endswith("; they were trained with model.alpha 2")
    assert initial_line(with_init(file, slow_frames="spread"), 7).endswith("with model.slow_frames centred")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A run's folder, and the run: three classes."""
    folder = tmp_path_factory.mktemp("trained")
    run = Run(plan=PLAN, data=DataSection(path="unused"), model=SMALL)
    train(run, folder, write_shards(tmp_path_factory.mktemp("three"), train=6, val=3, classes=3))
    return folder, run


def train(run: Run, folder: Path, shards: ShardSet) -> Loop:
    loop = Loop(run, LocalSession(folder), shards, folder, 0)
    loop.train()
    return loop


def events(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["detail"] for line in lines if line["kind"] == "event" and line["event"] == "init"]


def test_a_run_fine_tunes_another_run_s_checkpoint(trained: tuple[Path, Run], tmp_path: Path) -> None:
    folder, run = trained
    first = read_initial(str(folder)).state
    shards = write_shards(tmp_path, train=4, val=2, classes=2)
    tuned = dataclasses.replace(run, model=with_init(str(folder)))
    loop = Loop(tuned, LocalSession(tmp_path / "tuned"), shards, tmp_path / "tuned", 0)
    for key, value in loop.worker.module.state_dict().items():
        assert key.startswith("classifier") or torch.equal(value, first[key]), key
    loop.train()
    assert events(tmp_path / "tuned") == [
        f"weights start from {folder}; the head starts afresh, for 2 classes instead of 3"
    ]
    # its own checkpoint goes before the initial weights, which may be gone by then
    again = Loop(tuned, LocalSession(tmp_path / "tuned"), shards, tmp_path / "tuned", 1)
    assert again.step == loop.step > 0 and not again._initial
    gone = dataclasses.replace(tuned, model=with_init("/gone"))
    with pytest.raises(CheckpointError, match=r"model\.init .* -> /gone"):
        Loop(gone, LocalSession(tmp_path / "tuned"), shards, tmp_path / "tuned", 2)


def test_a_checkpoint_becomes_pyslowfast_s(trained: tuple[Path, Run], tmp_path: Path) -> None:
    convert(str(trained[0]), str(tmp_path / "theirs.pyth"))
    back = convert(str(tmp_path / "theirs.pyth"), str(tmp_path / "ours.pt"))
    first = read_initial(str(trained[0]))
    assert back.section.depth == 10 and back.num_classes == 3
    assert all(
        torch.equal(value, first.state[key]) for key, value in read_weights(str(tmp_path / "ours.pt")).state.items()
    )


def test_pyslowfast_s_weights_start_a_run(tmp_path: Path) -> None:
    state = random_state(shapes("i3d", width=4, classes=5))
    torch.save({"model_state": state}, tmp_path / "i3d.pyth")
    convert(str(tmp_path / "i3d.pyth"), str(tmp_path / "i3d.pt"))
    section = ModelSection(name="i3d", width=4, init=str(tmp_path / "i3d.pt"))
    shards = write_shards(tmp_path, train=4, val=2, classes=2)
    train(Run(plan=PLAN, data=DataSection(path="unused"), model=section), tmp_path / "run", shards)
    assert "for 2 classes instead of 5" in events(tmp_path / "run")[0]


def test_initial_weights_belong_to_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(model=with_init("weights.pt"))
    assert run.digest() != Run(model=SMALL).digest()
    assert run.digest() == Run(model=with_init(str(tmp_path / "weights.pt"))).digest()
    write_shards(tmp_path, train=2, val=1)
    good = dataclasses.replace(run, storage="runs", data=DataSection(path="set"), plan=PLAN)
    with pytest.raises(MgrayError, match=r"model\.init = 'weights\.pt': is not there"):
        check_run(good)
    Path("weights.pt").touch()
    check_run(good)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_initial(str(tmp_path))
