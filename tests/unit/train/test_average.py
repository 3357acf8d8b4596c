"""The moving average of weights: its weights add up, it counts clips, it steps aside for evaluation."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from mgray.data.shards.shard_set import ShardSet
from mgray.errors import CheckpointError
from mgray.plan import Plan
from mgray.train.average import WeightAverage
from mgray.train.checkpoint import read_tensors
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from tests.support.shards import write_shards
from tests.unit.train.test_loop import RUN, outcome, with_train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("average"))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3)).double()


def walk(net: nn.Module) -> None:
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(1) if not value.is_floating_point() else value.add_(torch.randn_like(value))


def test_it_is_the_weighted_mean_of_the_states() -> None:
    """Weight of a step's state: its clips under the decay curve, which is the integral of decay ** (clips since)."""
    net, decay, base = model(), 0.7, 8
    average = WeightAverage(net, decay, base)
    sizes, states = [8, 32, 16, 2, 8], []
    for index, clips in enumerate(sizes):
        walk(net)
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        average.update(clips, sum(sizes[:index]))
    after = [sum(sizes[index + 1 :]) for index in range(5)]
    weights = [decay ** (a / base) - decay ** ((a + clips) / base) for a, clips in zip(after, sizes, strict=True)]
    for name, value in average.state.items():
        if value.is_floating_point():
            want = sum(weight * state[name] for weight, state in zip(weights, states, strict=True)) / sum(weights)
            torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(value, states[-1][name])


def test_steps_of_base_batches_have_the_plain_recursion_in_the_long_run() -> None:
    average = WeightAverage(model(), 0.9, 8)
    assert average.share(8, 0) == 1.0
    assert average.share(8, 8000) == pytest.approx(0.1)
    assert average.share(32, 8000) == pytest.approx(1 - 0.9**4)


def test_a_batch_in_one_step_or_in_many_weighs_the_same() -> None:
    """If the weights stand still meanwhile."""
    states = []
    for sizes in ([16, 16], [4, 4, 8, 16], [16, 2, 6, 8]):
        net = model()
        average, done = WeightAverage(net, 0.8, 8), 0
        for clips in sizes:
            if done in (0, 16):
                torch.manual_seed(done + 1)
                walk(net)
            average.update(clips, done)
            done += clips
        states.append(average.state)
    for other in states[1:]:
        for name, value in states[0].items():
            if value.is_floating_point():
                torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-12)


def test_it_takes_the_model_s_place_for_a_while() -> None:
    net = model()
    average = WeightAverage(net, 0.5, 4)
    for index in range(3):
        walk(net)
        average.update(4, 4 * index)
    live, mean = ({k: v.clone() for k, v in state.items()} for state in (net.state_dict(), average.state))
    with average.in_place():
        assert all(torch.equal(value, mean[name]) for name, value in net.state_dict().items())
        net[1].running_mean.fill_(7.0)  # as precise BN does
    assert all(torch.equal(value, live[name]) for name, value in net.state_dict().items())
    assert (average.state["1.running_mean"] == 7.0).all()
    assert torch.equal(average.state["0.weight"], mean["0.weight"])


def test_runs_validate_keep_and_resume_it(shards: ShardSet, tmp_path: Path) -> None:
    """Same training as without, other validations; a resumed run goes on bit for bit; predictions use the average."""
    run = with_train(ema=0.8)
    for name, config in (("plain", RUN), ("ema", run)):
        (tmp_path / name).mkdir()
        session = LocalSession(tmp_path / name, keep=1000)
        Loop(dataclasses.replace(config), session, shards, tmp_path / name, 0).train()
    plain, averaged = outcome(tmp_path / "plain"), outcome(tmp_path / "ema")
    assert plain[0] == averaged[0]
    assert plain[1].keys() == averaged[1].keys() and plain[1] != averaged[1]
    steps = Plan.compile(run.plan, 10).num_steps
    end = tmp_path / "ema" / f"checkpoint_{steps:09d}"
    state = torch.load(end / "state.pt", weights_only=True)
    for first in (1, steps // 2, steps - 1):
        folder = tmp_path / str(first)
        shutil.copytree(tmp_path / "ema" / f"checkpoint_{first:09d}", folder / f"checkpoint_{first:09d}")
        Loop(run, LocalSession(folder), shards, folder, 1).train()
        assert outcome(folder)[1] == {step: loss for step, loss in averaged[1].items() if step > first}
        resumed = torch.load(folder / end.name / "state.pt", weights_only=True)
        for kind in ("model", "average"):
            assert all(torch.equal(value, state[kind][name]) for name, value in resumed[kind].items())
    loop = Loop(run, LocalSession(tmp_path / "new"), shards, tmp_path / "new", 0)
    read_tensors(end, loop.worker.module)
    assert all(torch.equal(value, state["average"][name]) for name, value in loop.worker.module.state_dict().items())


def test_a_checkpoint_without_it_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    loop = Loop(RUN, LocalSession(tmp_path / "a"), shards, tmp_path / "a", 0)
    loop._save(wait=True)
    average = WeightAverage(loop.worker.module, 0.5, 2)
    with pytest.raises(CheckpointError, match="average"):
        read_tensors(next((tmp_path / "a").glob("checkpoint_*")), loop.worker.module, loop.optimizer, average)
