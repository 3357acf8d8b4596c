"""The loop in one process: resumption at every step, what it refuses, its optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgray.audit import Audit, audit
from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, TrainSource
from mgray.errors import CheckpointError, DataError, TrainingError
from mgray.plan import Plan, PlanSpec, adaptive, sample_at
from mgray.plan.state import Amendment, Departure, Orders, ScheduleState
from mgray.train import lookout
from mgray.train import loop as loop_module
from mgray.train import step as step_module
from mgray.train.checkpoint import read_meta, write_schedule
from mgray.train.clips import clip_checksum
from mgray.train.compile import compile_model
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from tests.support.shards import write_shards

RUN = Run(
    plan=PlanSpec(
        frames=4, crop=16, batch=2, stride=1, jitter_min=18, jitter_max=24, epochs=12, lr_steps=(0, 10), lr_factors=(1.0, 0.1),
        lr=0.01, long_cycle="run", short_cycle=True, bn_group=2,
    ),
    data=DataSection(path="unused"),
    model=ModelSection(name="slow", depth=10, width=8, dropout=0.2),
    train=TrainSection(evals=2, eval_batch=3, precise_bn=1),
    scale=ScaleSection(save_every=1),
)  # fmt: skip
PLAN = Plan.compile(RUN.plan, 10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("loop"))


def with_train(**values: Any) -> Run:
    return dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, **values))


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def events(folder: Path) -> list[str]:
    return [record["event"] for record in records(folder, "event") if record["event"] != "checkpoint"]


def outcome(folder: Path) -> tuple[dict[int, tuple[float, int]], dict[int, float]]:
    """Loss and checksum of each step, loss of each validation: all that a run's numbers come to."""
    steps = {r["step"]: (r["loss"], r["checksum"]) for r in records(folder, "step")}
    return steps, {r["step"]: r["loss"] for r in records(folder, "eval")}


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    state = torch.load(folder / f"checkpoint_{step:09d}" / "state.pt", weights_only=True)
    return state["model"]


@pytest.fixture(scope="module")
def finished(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("finished")
    Loop(RUN, LocalSession(folder, keep=1000), shards, folder, 0).train()
    return folder


def test_resumes_at_every_step_with_the_same_rest(shards: ShardSet, finished: Path, tmp_path: Path) -> None:
    """Bit for bit: momentum, running statistics, dropout, order and crops are all where they were."""
    steps, evals = outcome(finished)
    assert len({r["frames"] for r in records(finished, "step")}) == 3 and len(evals) == 2
    assert list(steps) == list(range(PLAN.num_steps))
    for first in range(1, PLAN.num_steps):
        folder = tmp_path / str(first)
        shutil.copytree(finished / f"checkpoint_{first:09d}", folder / f"checkpoint_{first:09d}")
        loop = Loop(RUN, LocalSession(folder), shards, folder, 1)
        assert loop.step == first
        loop.train()
        rest = {step: value for step, value in steps.items() if step >= first}
        # a checkpoint is saved before a validation at its step, which is made up for
        assert outcome(folder) == (rest, {step: loss for step, loss in evals.items() if step >= first})
        ours, theirs = weights(folder, PLAN.num_steps), weights(finished, PLAN.num_steps)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_finished_run_trains_no_more(shards: ShardSet, finished: Path, tmp_path: Path) -> None:
    last = f"checkpoint_{PLAN.num_steps:09d}"
    shutil.copytree(finished / last, tmp_path / last)
    Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 1).train()
    assert records(tmp_path, "step") == records(tmp_path, "eval") == []
    assert events(tmp_path) == ["resume", "finish"]


def test_the_run_is_recorded(finished: Path) -> None:
    assert events(finished) == ["start", *["phase"] * len(PLAN.phases), "finish"]
    assert [r["step"] for r in records(finished, "event") if r["event"] == "phase"] == [
        phase.first_step for phase in PLAN.phases
    ]
    assert records(finished, "event")[-1]["detail"] == ""
    for record in records(finished, "step"):
        step = PLAN.step_at(record["step"])
        assert (record["clips"], record["frames"], record["crop"]) == (
            step.shape.clips, step.shape.frames, step.shape.height,
        )  # fmt: skip
        assert record["lr"] == step.lr and 0 <= record["top1"] <= 1
        samples = np.array([sample_at(position, 10, 0) for position in step.positions])
        planned = Block(step.index, 0, np.empty(0), np.empty(0), samples, np.array(step.positions))
        assert record["checksum"] == clip_checksum(planned)
    seconds = [record["train_s"] for record in records(finished, "step")]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert all(r["num_clips"] == 5 and 0 <= r["top1"] <= r["top5"] == 1 for r in records(finished, "eval"))


def test_each_step_has_the_plan_s_rate_and_warm_up(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the optimizer, not in the records only; linear in epochs from the first rate on."""
    plan = dataclasses.replace(RUN.plan, warmup_epochs=6.0, warmup_start_lr=0.001, lr_steps=(0, 8))
    run, rates = dataclasses.replace(RUN, plan=plan), []
    step = step_module.Worker.step

    def noted(self: step_module.Worker, *arguments: Any) -> torch.Tensor:
        rates.append([group["lr"] for group in arguments[-1].param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(step_module.Worker, "step", noted)
    Loop(run, LocalSession(tmp_path), shards, tmp_path, 0).train()
    compiled = Plan.compile(plan, 10)
    assert len(rates) == compiled.num_steps and len({rate for rate, *_ in rates}) > 3
    for index, found in enumerate(rates):
        planned = compiled.step_at(index)
        assert set(found) == {planned.lr}
        if planned.epoch < 6:
            end = compiled.rate.at(6.0)
            start = found[0] - (end - 0.001) * planned.epoch / 6.0
            assert start == pytest.approx(0.001, abs=1e-9), (index, planned.epoch)


def test_another_seed_is_another_run(shards: ShardSet, finished: Path, tmp_path: Path) -> None:
    """Seeds of 64 bits and negative ones too."""
    first = outcome(finished)[0][0]
    for number, seed in enumerate((1, -1, 123_456_789, 2**63 - 1)):
        folder = tmp_path / str(number)
        session = Stops(folder, stop=1)
        Loop(with_train(seed=seed), session, shards, folder, 0).train()
        assert outcome(folder)[0][0] != first


@dataclasses.dataclass
class Stops(LocalSession):
    """A session whose driver has been told to stop."""

    stop: int = 0
    told_at: int = 0
    shown: int = 0
    steps: list[int] = dataclasses.field(default_factory=list)

    def show(self, progress: dict[str, object], state: ScheduleState, step: int) -> None:
        self.shown = step

    def news(self) -> bool:
        return self.shown >= self.told_at

    def sync(self, state: ScheduleState, step: int) -> Orders:
        self.steps.append(step)
        if state.amendments or step < self.told_at:
            return Orders(state)
        return Orders(ScheduleState(state.plan_digest, (Amendment("stop", self.stop),)))


@pytest.mark.parametrize("stop", [PLAN.phases[2].first_step, PLAN.phases[2].first_step + 1])
def test_a_stop_between_phases_or_within_one(shards: ShardSet, finished: Path, tmp_path: Path, stop: int) -> None:
    """It is validated and saved where it ends, and ends there again when it is started again."""
    session = Stops(tmp_path, stop=stop, told_at=3)
    assert Loop(RUN, session, shards, tmp_path, 0).train() == ""
    steps, evals = outcome(tmp_path)
    assert steps == {step: value for step, value in outcome(finished)[0].items() if step < stop}
    assert list(evals)[-1] == stop
    assert session.steps[0] == 0 and 3 <= session.steps[1] <= stop
    kinds = [event for event in events(tmp_path) if event != "phase"]
    assert kinds == ["start", "amend", "finish"]
    assert records(tmp_path, "event")[-1]["detail"] == "stopped early by an amendment"
    assert read_meta(tmp_path / f"checkpoint_{stop:09d}").schedule.amendments == (Amendment("stop", stop),)
    assert json.loads((tmp_path / "schedule.json").read_text())["amendments"] == [["stop", stop, 0.0, ""]]
    loop = Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 1)
    loop.train()
    assert loop.step == stop and outcome(tmp_path) == (steps, evals)


@dataclasses.dataclass
class Told(LocalSession):
    """A session whose driver has orders for some steps."""

    orders: dict[int, Orders] = dataclasses.field(default_factory=dict)
    shown: int = 0
    left: Departure | None = None

    def show(self, progress: dict[str, object], state: ScheduleState, step: int) -> None:
        self.shown = step

    def news(self) -> bool:
        return any(step <= self.shown for step in self.orders)

    def sync(self, state: ScheduleState, step: int) -> Orders:
        due = [at for at in self.orders if at <= step]
        orders = self.orders.pop(due[0]) if due else Orders(state)
        return dataclasses.replace(orders, state=state.newer(orders.state))

    def leave(self, departure: Departure) -> None:
        self.left = departure


def test_leaving_at_a_named_step_saves_there_and_repeats_nothing(
    shards: ShardSet, finished: Path, tmp_path: Path
) -> None:
    at = PLAN.phases[1].first_step + 1
    state = ScheduleState(PLAN.digest())
    departure = Departure(at, "stop")
    session = Told(tmp_path, orders={0: Orders(state, departures=(departure,))})
    assert Loop(RUN, session, shards, tmp_path, 0).train() == "stop"
    assert session.left == departure and read_meta(tmp_path / f"checkpoint_{at:09d}").step == at
    assert events(tmp_path)[-1] == "leave"
    assert Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 1).train() == ""
    assert outcome(tmp_path) == outcome(finished)
    assert len(records(tmp_path, "step")) == PLAN.num_steps


def test_a_departure_outlives_the_driver_that_told_of_it(shards: ShardSet, tmp_path: Path) -> None:
    """Another driver, which was started anew, knows only of one that was asked for later."""
    state = ScheduleState(PLAN.digest())
    later, sooner = Departure(7, "stop"), Departure(5, "resize", 2)
    orders = {0: Orders(state, departures=(later, sooner)), 2: Orders(state), 4: Orders(state, departures=(later,))}
    session = Told(tmp_path, orders=orders)
    assert Loop(RUN, session, shards, tmp_path, 0).train() == "resize"
    assert session.left == sooner and read_meta(tmp_path / "checkpoint_000000005").step == 5


def test_amended_schedules_are_trained_and_replayed(shards: ShardSet, finished: Path, tmp_path: Path) -> None:
    """Shapes and rates are those of the amended plan from the named step on; a resumed run goes through the same."""
    step = PLAN.phases[0].first_step + 2
    log = ScheduleState(PLAN.digest(), (Amendment("advance", step), Amendment("rate", step + 2, 0.5)))
    plan = log.plan(PLAN)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    Loop(RUN, Told(whole, orders={0: Orders(log)}), shards, whole, 0).train()
    assert [(r["step"], r["clips"], r["crop"], r["lr"]) for r in records(whole, "step")] == [
        (k, s.shape.clips, s.shape.height, s.lr) for k, s in enumerate(map(plan.step_at, range(plan.num_steps)))
    ]
    assert outcome(whole)[0] != outcome(finished)[0]
    middle = step + 3
    session = Told(halved, orders={0: Orders(log, departures=(Departure(middle, "resize"),))})
    assert Loop(RUN, session, shards, halved, 0).train() == "resize"
    Loop(RUN, LocalSession(halved), shards, halved, 1).train()
    assert outcome(halved)[0] == outcome(whole)[0]
    for folder in (whole, halved):
        assert (audited(folder, RUN).failure, audited(folder, RUN).steps) == (None, plan.num_steps)
    assert json.loads((halved / "plan.json").read_text())["totals"]["num_steps"] == plan.num_steps


def test_workers_who_go_on_from_an_earlier_step_count_from_there(shards: ShardSet, tmp_path: Path) -> None:
    """The checkpoint of those who came later is lost: their batches have never been."""
    run = dataclasses.replace(RUN, plan=dataclasses.replace(RUN.plan, batch_policy="per_worker"))
    plan = Plan.compile(run.plan, 10)
    fresh = ScheduleState(plan.digest())
    session = Told(tmp_path, orders={0: Orders(fresh, departures=(Departure(4, "stop"),))})
    assert Loop(run, session, shards, tmp_path, 0).train() == "stop"
    write_schedule(tmp_path, fresh.amended(Amendment("workers", 6, 3)), plan)
    Loop(run, LocalSession(tmp_path), shards, tmp_path, 1).train()
    stored = json.loads((tmp_path / "schedule.json").read_text())["amendments"]
    assert [entry[:3] for entry in stored] == [["workers", 6, 3], ["workers", 4, 1]]
    assert [r["clips"] for r in records(tmp_path, "step")] == [
        plan.step_at(k).shape.clips for k in range(plan.num_steps)
    ]
    assert audited(tmp_path, run).failure is None


def test_a_flat_phase_is_ended_and_replayed(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, stopped in the middle of a phase and resumed, ends it at the same step."""
    monkeypatch.setattr(adaptive, "MIN_WINDOW", 2)
    monkeypatch.setattr(adaptive, "WINDOW_SHARE", 0.28)  # so that a phase that was ended has shorter windows
    monkeypatch.setattr(adaptive, "BEGUN", math.inf)
    spec = dataclasses.replace(PLAN.spec, epochs=60, lr_steps=(0, 50), adaptive="plateau", adaptive_gain=1.0)
    run = dataclasses.replace(with_train(evals=1), plan=spec, scale=ScaleSection(save_every=1000))
    plan, first = Plan.compile(spec, PLAN.num_samples), 2
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    session = Told(whole, orders={0: Orders(ScheduleState(plan.digest()), (first,))})
    Loop(run, session, shards, whole, 0).train()
    amendments = json.loads((whole / "schedule.json").read_text())["amendments"]
    assert amendments and all(kind == "advance" and value == 1.0 for kind, _, value, _ in amendments)
    amended = ScheduleState.from_json(json.loads((whole / "schedule.json").read_text())).plan(plan)
    assert amended.voxels <= plan.voxels
    steps = outcome(whole)[0]
    assert list(steps) == list(range(amended.num_steps))
    at = amendments[0][1] - 1
    session = Told(halved, orders={0: Orders(ScheduleState(plan.digest()), departures=(Departure(at, "stop"),))})
    assert Loop(run, session, shards, halved, 0).train() == "stop"
    Loop(run, LocalSession(halved), shards, halved, 1).train()
    assert json.loads((halved / "schedule.json").read_text())["amendments"] == amendments
    assert outcome(halved)[0] == steps
    # lost and trained again, with the log of what was decided already
    shutil.rmtree(whole / f"checkpoint_{amended.num_steps:09d}")
    loop = Loop(run, LocalSession(whole), shards, whole, 1)
    assert loop.step == first and loop.schedule.version == len(amendments)
    loop.train()
    assert json.loads((whole / "schedule.json").read_text())["amendments"] == amendments
    assert outcome(whole)[0] == steps
    for folder in (whole, halved):
        assert (audited(folder, run).failure, audited(folder, run).steps) == (None, amended.num_steps)


def test_checkpoints_are_saved_where_they_are_asked_for(shards: ShardSet, tmp_path: Path) -> None:
    state = ScheduleState(PLAN.digest())
    session = Told(tmp_path, orders={0: Orders(state, (3, 6)), 2: Orders(state, (5,))})
    run = dataclasses.replace(RUN, scale=dataclasses.replace(RUN.scale, save_every=1000))
    Loop(run, session, shards, tmp_path, 0).train()
    assert [r["step"] for r in records(tmp_path, "event") if r["event"] == "checkpoint"] == [3, 5, 6, PLAN.num_steps]


def test_a_validation_that_dies_is_made_up_for(
    shards: ShardSet, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained before it is saved by then."""
    first = next(iter(outcome(finished)[1]))

    def dies(*_: Any) -> None:
        raise OSError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "evaluate", dies)
        with pytest.raises(OSError, match="lost"):
            Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 0).train()
    loop = Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 1)
    assert loop.step == first < PLAN.num_steps
    loop.train()
    assert outcome(tmp_path) == outcome(finished)


@dataclasses.dataclass
class Noticed(LocalSession):
    """A session whose node is given notice while the validation after a step goes on."""

    step: int = 0
    is_due: bool = False
    left: Departure | None = None

    def show(self, progress: dict[str, object], state: ScheduleState, step: int) -> None:
        self.is_due = step == self.step and "validates" in str(progress.get("doing"))

    def leaving_nodes(self) -> tuple[str, ...]:
        return ("node",) if self.is_due else ()

    def leave(self, departure: Departure) -> None:
        self.left = departure


@pytest.mark.parametrize("number", [0, 1])
def test_a_notice_in_a_validation_is_heeded(
    shards: ShardSet, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Workers save and leave, also at the end of the schedule; who goes on validates first."""
    monkeypatch.setattr(lookout, "NOTICE_EVERY_S", 0.0)
    monkeypatch.setattr(loop_module, "FLUSH_STEPS", 1)
    at = list(outcome(finished)[1])[number]
    session = Noticed(tmp_path, step=at)
    run = dataclasses.replace(RUN, scale=ScaleSection(save_every=1000))
    assert Loop(run, session, shards, tmp_path, 0).train() == "notice"
    assert session.left == Departure(at, "notice", nodes=("node",))
    assert read_meta(tmp_path / f"checkpoint_{at:09d}").validated is False and at not in outcome(tmp_path)[1]
    assert Loop(run, LocalSession(tmp_path), shards, tmp_path, 1).train() == ""
    assert outcome(tmp_path) == outcome(finished)
    assert len(records(tmp_path, "step")) == PLAN.num_steps


def test_local_checkpoints_are_few_and_whole(shards: ShardSet, tmp_path: Path) -> None:
    Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 0).train()
    steps = [PLAN.num_steps - 2, PLAN.num_steps - 1, PLAN.num_steps]
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == [f"checkpoint_{step:09d}" for step in steps]
    assert [read_meta(tmp_path / f"checkpoint_{step:09d}").step for step in steps] == steps


def test_a_write_that_is_cut_off_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    session = LocalSession(tmp_path)

    def write(folder: Path) -> None:
        (folder / "meta.json").write_text("{}")

    def fail(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        raise OSError("disk full")

    with session.load() as folders:
        assert folders == []
    session.save(write, {"step": 3})
    with pytest.raises(OSError, match="disk full"):
        session.save(fail, {"step": 12})
    with session.load() as folders:
        assert folders == [tmp_path / "checkpoint_000000003"]


@pytest.mark.parametrize("file", ["meta.json", "state.pt"])
def test_a_damaged_checkpoint_is_passed_over(shards: ShardSet, finished: Path, tmp_path: Path, file: str) -> None:
    """The run goes on from the one before it, to the same end; where none is whole it says so and keeps all."""
    folder = tmp_path / "run"
    Loop(RUN, Stops(folder, stop=PLAN.num_steps - 2, told_at=2), shards, folder, 0).train()
    newest, before = sorted(folder.glob("checkpoint_*"), reverse=True)[:2]
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    loop = Loop(RUN, LocalSession(folder), shards, folder, 1)
    assert loop.step == read_meta(before).step
    for checkpoint in folder.glob("checkpoint_*"):
        (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match="none of them whole"):
        Loop(RUN, LocalSession(folder), shards, folder, 2)
    assert len(list(folder.glob("checkpoint_*"))) == 3


def test_a_run_goes_on_computed_in_another_way(shards: ShardSet, tmp_path: Path) -> None:
    """In other layouts, fewer groups at once, and back: the numbers and the checkpoints of a run that never changed."""
    check_going_on(shards, tmp_path, exact(RUN), {"channels_last": False, "micro_groups": 1})


def test_a_run_goes_on_compiled_and_not(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one shape, as tracing a graph takes seconds; those of many shapes are in tests/integration/test_compile.py."""
    monkeypatch.setattr(step_module, "compile_model", lambda model: compile_model(model, backend="eager"))
    torch._dynamo.reset()
    plan = dataclasses.replace(
        RUN.plan, epochs=1, lr_steps=(0,), lr_factors=(1.0,), long_cycle="off", short_cycle=False
    )
    check_going_on(shards, tmp_path, exact(dataclasses.replace(RUN, plan=plan)), {"compile": True})


def exact(run: Run) -> Run:
    """In float64 and at a tenth of the rate: norms over few clips of a few pixels enlarge what rounding leaves from step to step."""
    return dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, lr=0.1 * run.plan.lr),
        train=dataclasses.replace(run.train, precision="float64"),
    )


def check_going_on(shards: ShardSet, root: Path, slow: Run, change: dict[str, Any]) -> None:
    """Changed in the middle, or changed back there, a run goes on as if nothing had been changed."""
    Loop(slow, LocalSession(root / "slow"), shards, root / "slow", 0).train()
    (want_steps, want_evals), plan = outcome(root / "slow"), Plan.compile(slow.plan, 10)
    fast, middle = dataclasses.replace(slow, train=dataclasses.replace(slow.train, **change)), plan.num_steps // 2
    for name, first, second in (("faster", slow, fast), ("slower", fast, slow)):
        folder, leaves = root / name, Departure(middle, "stop")
        session = Told(folder, orders={0: Orders(ScheduleState(plan.digest()), departures=(leaves,))})
        assert Loop(first, session, shards, folder, 0).train() == "stop"
        loop = Loop(second, LocalSession(folder), shards, folder, 1)
        assert loop.step == middle > 0
        loop.train()
        steps, evals = outcome(folder)
        assert {step: checksum for step, (_, checksum) in steps.items()} == {
            step: checksum for step, (_, checksum) in want_steps.items()
        }
        losses, want_losses = ([loss for loss, _ in of.values()] for of in (steps, want_steps))
        assert losses == pytest.approx(want_losses, rel=1e-6) and evals == pytest.approx(want_evals, rel=1e-5)
        assert list(weights(folder, plan.num_steps)) == list(weights(root / "slow", plan.num_steps))


def test_a_checkpoint_of_an_earlier_digest_goes_on(shards: ShardSet, finished: Path, tmp_path: Path) -> None:
    """Its settings count, not what was made of them."""
    shutil.copytree(finished / "checkpoint_000000002", tmp_path / "checkpoint_000000002")
    path = tmp_path / "checkpoint_000000002" / "meta.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"run_digest": "0" * 64}))
    assert Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 1).step == 2
    with pytest.raises(CheckpointError, match=r"train\.tf32 True -> False"):
        Loop(with_train(tf32=False), LocalSession(tmp_path), shards, tmp_path, 1)


def test_another_plan_names_the_setting(shards: ShardSet, finished: Path) -> None:
    other = dataclasses.replace(RUN, plan=dataclasses.replace(RUN.plan, lr=0.02))
    with pytest.raises(CheckpointError, match=r"plan\.lr 0\.01 -> 0\.02"):
        Loop(other, LocalSession(finished), shards, finished, 0)
    with pytest.raises(CheckpointError, match=r"train\.seed 0 -> 5"):
        Loop(with_train(seed=5), LocalSession(finished), shards, finished, 0)
    Loop(dataclasses.replace(RUN, scale=ScaleSection(save_every=9)), LocalSession(finished), shards, finished, 0)


def test_other_data_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="other data"):
        Loop(RUN, LocalSession(finished), write_shards(tmp_path, classes=2, frames=9), finished, 0)


def test_a_loss_that_is_not_finite_stops_the_run(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names step and videos, and what it spoilt is not saved."""
    bad = 4
    names = [f"{sample_at(position, 10, 0)}.mp4" for position in PLAN.step_at(bad).positions]
    whole = Loop._train_on

    def train_on(loop: Loop, step: Any, block: Block) -> torch.Tensor:
        return whole(loop, step, block) * (float("nan") if step.index == bad else 1.0)

    monkeypatch.setattr(Loop, "_train_on", train_on)
    with pytest.raises(TrainingError) as caught:
        Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 0).train()
    assert f"is not finite at step {bad} (videos {', '.join(names[:4])} and {len(names) - 4} more)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [r["step"] for r in records(tmp_path, "step")] == list(range(bad))
    assert max(path.name for path in tmp_path.glob("checkpoint_*")) == f"checkpoint_{bad:09d}"


def test_a_rate_that_is_too_high_is_noticed(shards: ShardSet, tmp_path: Path) -> None:
    run = dataclasses.replace(
        with_train(precise_bn=0, evals=1), plan=dataclasses.replace(RUN.plan, lr=1e30), scale=ScaleSection()
    )
    with pytest.raises(TrainingError, match=r"loss = (nan|inf): is not finite at step \d+ .* lower plan\.lr"):
        Loop(run, LocalSession(tmp_path), shards, tmp_path, 0).train()
    assert not list(tmp_path.glob("checkpoint_*"))


@dataclasses.dataclass
class MixedUp(LocalSession):
    """A session whose feed delivers the blocks of other steps."""

    change: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def feed(self) -> MixedUp:
        return self

    def blocks(self, source: Any, segments: Any) -> contextlib.closing[Iterator[Block]]:
        def blocks() -> Iterator[Block]:
            for index in range(PLAN.num_steps):
                block = source.block(index, 0, 1)
                positions = block.positions_N + self.change.get("position", 0)
                clips = block.clips_NTHWC[:, :, self.change.get("row", 0) :]
                index = index + self.change.get("index", 0)
                yield dataclasses.replace(block, index=index, clips_NTHWC=clips, positions_N=positions)

        return contextlib.closing(blocks())


@pytest.mark.parametrize("change", [{"index": 1}, {"row": 1}, {"position": 1000}])
def test_a_block_of_another_step_is_noticed(shards: ShardSet, tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(TrainingError, match="is not that of step 0"):
        Loop(RUN, MixedUp(tmp_path, change=change), shards, tmp_path, 0).train()
    assert records(tmp_path, "step") == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two training videos of ten, and one validation video of five, are noise."""
    return write_shards(tmp_path_factory.mktemp("broken"), damaged=(4, 6, 12))


def with_broken(share: float) -> Run:
    return dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, max_broken=share))


def test_broken_videos_are_replaced_and_listed(broken: ShardSet, tmp_path: Path) -> None:
    run = with_broken(0.2)
    Loop(run, LocalSession(tmp_path), broken, tmp_path, 0).train()
    found = records(tmp_path, "quarantine")
    assert {(line["split"], line["path"]) for line in found} == {
        ("train", "4.mp4"),
        ("train", "6.mp4"),
        ("val", "12.mp4"),
    }
    assert len(found) == 3 and all("does not decode" in line["reason"] for line in found)
    assert {record["num_clips"] for record in records(tmp_path, "eval")} == {4}
    assert len(records(tmp_path, "step")) == PLAN.num_steps
    source = TrainSource(broken, PLAN, run.train.seed, run.data.fps, run.data.flip)
    for index, (_, checksum) in outcome(tmp_path)[0].items():
        assert clip_checksum(source.block(index, 0, 1)) == checksum


def audited(folder: Path, run: Run) -> Audit:
    """Audit a folder that only the loop has written to."""
    (folder / "run.json").write_text(json.dumps(run.to_json()))
    (folder / "data.json").write_text(json.dumps({"num_train": 10}))
    return audit(folder)


def test_every_attempt_is_audited(shards: ShardSet, broken: ShardSet, tmp_path: Path) -> None:
    """Resumed twice, with and without broken videos."""
    for name, data, run in (("whole", shards, RUN), ("broken", broken, with_broken(0.2))):
        folder = tmp_path / name
        Loop(run, LocalSession(folder, keep=1000), data, folder, 0).train()
        assert (audited(folder, run).failure, audited(folder, run).checkpoints) == (None, PLAN.num_steps)
        for attempt, step in ((1, 6), (2, 3)):
            for later in range(step + 1, PLAN.num_steps + 1):
                shutil.rmtree(folder / f"checkpoint_{later:09d}", ignore_errors=True)
            Loop(run, LocalSession(folder, keep=1000), data, folder, attempt).train()
        found = audited(folder, run)
        assert (found.failure, found.steps, found.attempts) == (None, PLAN.num_steps, 3)
        assert found.repeated_steps == PLAN.num_steps - 6 + PLAN.num_steps - 3
        assert (found.substituted_clips > 0) == (name == "broken")
        assert found.checkpoints == PLAN.num_steps


def test_a_resumed_run_with_broken_videos_is_the_same(broken: ShardSet, tmp_path: Path) -> None:
    run = with_broken(0.2)
    Loop(run, LocalSession(tmp_path / "whole", keep=1000), broken, tmp_path / "whole", 0).train()
    shutil.copytree(tmp_path / "whole" / f"checkpoint_{5:09d}", tmp_path / "rest" / f"checkpoint_{5:09d}")
    Loop(run, LocalSession(tmp_path / "rest"), broken, tmp_path / "rest", 1).train()
    whole, rest = outcome(tmp_path / "whole"), outcome(tmp_path / "rest")
    assert rest[0] == {step: value for step, value in whole[0].items() if step >= 5}


def test_too_many_broken_videos_end_the_run_with_a_list(broken: ShardSet, tmp_path: Path) -> None:
    """Those that an earlier attempt found count."""
    with pytest.raises(
        DataError, match=r"of 10 train videos are broken, more than data.max_broken = 0.1: [46].mp4 .+[46].mp4"
    ):
        Loop(with_broken(0.1), LocalSession(tmp_path), broken, tmp_path, 0).train()
    assert {line["path"] for line in records(tmp_path, "quarantine")} >= {"4.mp4", "6.mp4"}
    first, second = [line for line in records(tmp_path, "quarantine") if line["split"] == "train"]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(second) + "\n")
    with pytest.raises(DataError, match=r"2 of 10 train videos are broken"):
        Loop(with_broken(0.1), LocalSession(tmp_path / "again"), broken, tmp_path, 1).train()
    listed = [line["path"] for line in records(tmp_path, "quarantine") if line["split"] == "train"]
    assert listed == [second["path"], first["path"]]


def test_one_broken_video_in_ten_is_more_than_one_per_cent(broken: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"more than data.max_broken = 0.01: .+; repair them and ingest again"):
        Loop(RUN, LocalSession(tmp_path), broken, tmp_path, 0).train()


def test_losses_are_recorded_in_few_collectives(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are flushed every FLUSH_STEPS, and at each phase, validation and save."""
    sizes = []
    flush = Loop._flush

    def counted(loop: Loop) -> lookout.Signal:
        sizes.append(len(loop._done))
        return flush(loop)

    monkeypatch.setattr(Loop, "_flush", counted)
    monkeypatch.setattr(loop_module, "FLUSH_STEPS", 3)
    run = dataclasses.replace(with_train(evals=1, precise_bn=0), scale=ScaleSection(save_every=1000))
    Loop(run, LocalSession(tmp_path), shards, tmp_path, 0).train()
    flushed = [size for size in sizes if size]
    assert sum(flushed) == PLAN.num_steps and flushed[0] == 1 and max(flushed) == 2  # a phase has three steps at most
    assert len(flushed) < PLAN.num_steps
