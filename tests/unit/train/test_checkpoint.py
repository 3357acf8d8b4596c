"""Checkpoints are whole, of this run, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mgray.errors import CheckpointError, ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.plan.state import Amendment, ScheduleState
from mgray.train.checkpoint import (
    CheckpointMeta,
    begin_amended,
    newest_checkpoint,
    read_meta,
    read_tensors,
    schedule_so_far,
    snapshot_of,
    write_checkpoint,
    write_schedule,
)

META = CheckpointMeta(
    step=7,
    run_digest="r",
    data_digest="d",
    schedule=ScheduleState("p", (Amendment("stop", 9),)),
    classes=("a", "b"),
    run={},
    train_s=1.5,
    attempt=0,
)


def trained(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(width, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint_000000007"
    folder.mkdir()
    write_checkpoint(folder, META, snapshot_of(*trained()))
    return folder


def test_round_trip(stored: Path) -> None:
    model, optimizer = trained()
    want = {name: value.clone() for name, value in model.state_dict().items()}
    write_checkpoint(stored, META, snapshot_of(model, optimizer))
    other, other_optimizer = trained()
    read_tensors(stored, other, other_optimizer)
    assert read_meta(stored) == META
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0)
    momenta, others = (o.state_dict()["state"] for o in (optimizer, other_optimizer))
    assert momenta.keys() == others.keys() == {0, 1}
    for key, state in momenta.items():
        assert torch.equal(state["momentum_buffer"], others[key]["momentum_buffer"])


def test_a_cut_off_file_is_refused(stored: Path) -> None:
    tensors = stored / "state.pt"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"is damaged or cut off; use an earlier checkpoint"):
        read_meta(stored)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="cut off"):
        read_meta(stored)


def test_a_changed_byte_is_noticed(stored: Path) -> None:
    content = bytearray((stored / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (stored / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_meta(stored)


def test_one_without_description_is_none(stored: Path) -> None:
    (stored / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta\.json"):
        read_meta(stored)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        newest_checkpoint(stored.parent)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "damaged"), ("{}", "damaged"), ("[]", "damaged"), ("\xff", "damaged"), ('{"format": 99}', "format 99")],
)
def test_a_damaged_description_is_refused(stored: Path, content: str, problem: str) -> None:
    (stored / "meta.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_meta(stored)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["step", "schedule", "classes", "sha256"])
def test_a_description_without_a_field_is_refused(stored: Path, field: str) -> None:
    content = json.loads((stored / "meta.json").read_text())
    del content[field]
    (stored / "meta.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"is damaged \('{field}'\)"):
        read_meta(stored)


def test_an_amendment_of_a_later_mgray_is_refused(stored: Path) -> None:
    content = json.loads((stored / "meta.json").read_text())
    content["schedule"]["amendments"] = [["fold", 9]]
    (stored / "meta.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="amendment = 'fold'"):
        read_meta(stored)


def test_another_model_is_refused(stored: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit the model \(.*size mismatch") as caught:
        read_tensors(stored, trained(width=4)[0])
    assert "\n" not in str(caught.value)
    other = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        read_tensors(stored, other)
    model = nn.Linear(3, 2)
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match="does not fit the model"):
        read_tensors(stored, model, torch.optim.SGD(groups, lr=0.1))


def test_the_newest_of_a_run_is_found(stored: Path) -> None:
    later = stored.with_name("checkpoint_x")
    later.mkdir()
    write_checkpoint(later, META, snapshot_of(*trained()))
    content = json.loads((later / "meta.json").read_text())
    (later / "meta.json").write_text(json.dumps(content | {"step": 12}))
    assert newest_checkpoint(stored.parent) == later
    assert newest_checkpoint(stored) == stored


def test_a_checkpoint_is_named_in_full(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the run's folder is its parent."""
    for here, given in ((stored, "."), (stored.parent, "."), (stored.parent, stored.name)):
        monkeypatch.chdir(here)
        assert newest_checkpoint(Path(given)) == stored


def test_a_plan_starts_as_it_was_amended(tmp_path: Path) -> None:
    plan = Plan.compile(PlanSpec(epochs=4, lr_steps=(0, 2), lr_factors=(1.0, 0.1), batch=8, long_cycle="run"), 400)
    assert schedule_so_far(tmp_path, plan) == ScheduleState(plan.digest())
    amended = ScheduleState(plan.digest(), (Amendment("rate", 30, 0.5, "key"),))
    write_schedule(tmp_path, amended, amended.plan(plan))
    assert schedule_so_far(tmp_path, plan) == amended
    write_schedule(tmp_path, ScheduleState("p", META.schedule.amendments), plan)
    with pytest.raises(CheckpointError, match="is not the plan of this run"):
        schedule_so_far(tmp_path, plan)


def test_a_run_begins_with_amendments_of_its_own_plan_only(tmp_path: Path) -> None:
    plan = Plan.compile(PlanSpec(epochs=4, lr_steps=(0, 2), lr_factors=(1.0, 0.1), batch=8, long_cycle="run"), 400)
    amended = ScheduleState(plan.digest(), (Amendment("rate", 30, 0.5, "pbt-1-rate"),))
    begin_amended(tmp_path / "run", plan, amended)
    assert schedule_so_far(tmp_path / "run", plan) == amended
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["digest"] == amended.plan(plan).digest()
    with pytest.raises(ConfigError, match="another schedule or other data"):
        begin_amended(tmp_path / "other", Plan.compile(plan.spec, 401), amended)
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_that_is_being_written_is_not_the_newest(stored: Path) -> None:
    part = stored.with_name("checkpoint_000000009.part17")
    part.mkdir()
    (part / "meta.json").write_text('{"step": 9')
    assert newest_checkpoint(stored.parent) == stored


def test_a_damaged_newest_checkpoint_is_not_passed_over(stored: Path) -> None:
    """An evaluation of another checkpoint than the user means would mislead."""
    later = stored.with_name("checkpoint_000000009")
    later.mkdir()
    (later / "meta.json").write_text('{"step": 9')
    with pytest.raises(CheckpointError, match=r"checkpoint_000000009/meta\.json': is damaged"):
        newest_checkpoint(stored.parent)
