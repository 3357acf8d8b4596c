"""The loop's arithmetic in float64 on several ranks, without Ray: equal to one process to the last digits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mgray.audit import audit
from mgray.data.annotations import Action
from mgray.data.shards.shard_set import ShardSet
from mgray.train.checkpoint import newest_checkpoint, read_model
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from tests.support.ranks import train_on_ranks
from tests.support.runs import equality_run, step_lines
from tests.support.shards import write_shards


@pytest.mark.parametrize("world_size", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_float64_losses_do_not_depend_on_the_ranks(shards: str, tmp_path: Path, world_size: int) -> None:
    """Uneven shares, groups that span ranks, and (with 5 ranks in 1-clip groups) every way to cut a batch."""
    run = equality_run(shards, tmp_path, "one")
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, precision="float64", evals=1))
    Loop(run, LocalSession(tmp_path / "one"), ShardSet.open(shards), tmp_path / "one", 0).train()
    alone = step_lines(tmp_path / "one")
    together = train_on_ranks(run, shards, tmp_path / "many", world_size)
    found = json.loads((tmp_path / "one" / "validation.json").read_text())
    assert json.loads((tmp_path / "many" / "validation.json").read_text()) == found
    assert sum(videos for _, _, videos in found["confusion"]) == 16
    assert len(alone) == len(together) >= 24
    for one, many in zip(alone, together, strict=True):
        assert many["checksum"] == one["checksum"]
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-12)


def test_more_ranks_than_clips(shards: str, tmp_path: Path) -> None:
    """Ranks without a clip take part in every collective and change nothing."""
    run = equality_run(shards, tmp_path, "one")
    plan = dataclasses.replace(
        run.plan, batch=2, bn_group=2, long_cycle="off", short_cycle=False, epochs=1, lr_steps=(0,)
    )
    train = dataclasses.replace(run.train, precision="float64", evals=1)
    run = dataclasses.replace(run, plan=plan, train=train)
    Loop(run, LocalSession(tmp_path / "one"), ShardSet.open(shards), tmp_path / "one", 0).train()
    alone = step_lines(tmp_path / "one")
    together = train_on_ranks(run, shards, tmp_path / "many", 3)
    assert [line["checksum"] for line in together] == [line["checksum"] for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-12)


def test_mixing_and_averages_do_not_depend_on_the_ranks(shards: str, tmp_path: Path) -> None:
    """Mixup, CutMix and the average of weights: losses of all steps, and validations with the average."""
    run = equality_run(shards, tmp_path, "one")
    train = dataclasses.replace(
        run.train, precision="float64", evals=2, mixup=0.8, cutmix=1.0, label_smoothing=0.1, ema=0.9
    )
    run = dataclasses.replace(run, train=train)
    Loop(run, LocalSession(tmp_path / "one"), ShardSet.open(shards), tmp_path / "one", 0).train()
    alone = step_lines(tmp_path / "one")
    together = train_on_ranks(run, shards, tmp_path / "many", 3)
    assert len(alone) == len(together) >= 24
    for one, many in zip(alone, together, strict=True):
        assert (many["checksum"], many["top1"]) == (one["checksum"], one["top1"])
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-12)
    first, second = (read_model(newest_checkpoint(tmp_path / name)) for name in ("one", "many"))
    live = torch.load(newest_checkpoint(tmp_path / "one") / "state.pt", weights_only=True)["model"]
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(value, live[name]) for name, value in first.items())


def test_multi_label_runs_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    """Losses with mixed labels, and the average precision over all ranks' videos, one of them without any."""
    actions = [[Action(label=i % 4, start_s=0.0, end_s=0.2), Action(label=3, start_s=0.3, end_s=9.0)] for i in range(5)]
    shards = write_shards(tmp_path, train=12, val=5, classes=4, actions=[*actions, []])
    run = equality_run(shards.root, tmp_path, "one")
    train = dataclasses.replace(run.train, precision="float64", evals=2, mixup=0.8, eval_batch=3)
    plan = dataclasses.replace(run.plan, crop=16, jitter_min=18, jitter_max=24, epochs=60, lr_steps=(0, 59))
    run = dataclasses.replace(run, train=train, plan=plan)
    Loop(run, LocalSession(tmp_path / "one"), shards, tmp_path / "one", 0).train()
    alone = step_lines(tmp_path / "one")
    together = train_on_ranks(run, shards.root, tmp_path / "many", 3)
    assert len(alone) == len(together) >= 8
    for one, many in zip(alone, together, strict=True):
        assert (many["checksum"], many["top1"]) == (one["checksum"], one["top1"])
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-12)
    evals = [
        [line for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "eval"]
        for name in ("one", "many")
    ]  # fmt: skip
    assert len(evals[0]) == len(evals[1]) == 2
    for one, many in zip(*evals, strict=True):
        assert (many["map"], many["num_clips"]) == (pytest.approx(one["map"], rel=1e-6), one["num_clips"])
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_broken_videos_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    """The same substitutes, losses, scores and list on three ranks as on one, each proven by its ledger."""
    shards = write_shards(tmp_path, damaged=(2, 5, 11))
    run = equality_run(shards.root, tmp_path, "one")
    plan = dataclasses.replace(
        run.plan, crop=16, jitter_min=18, jitter_max=24, batch=4, bn_group=4, size_multiple=8, epochs=16, lr_steps=(0, 15)
    )  # fmt: skip
    run = dataclasses.replace(
        run, plan=plan, train=dataclasses.replace(run.train, precision="float64", evals=2, precise_bn=1),
        data=dataclasses.replace(run.data, max_broken=0.2),
    )  # fmt: skip
    Loop(run, LocalSession(tmp_path / "one"), shards, tmp_path / "one", 0).train()
    alone = step_lines(tmp_path / "one")
    together = train_on_ranks(run, shards.root, tmp_path / "many", 3)
    assert [line["checksum"] for line in together] == [line["checksum"] for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-12)
    found, evals = [], []
    for name in ("one", "many"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found.append([(x["split"], x["path"], x["reason"]) for x in lines if x["kind"] == "quarantine"])
        evals.append([(x["num_clips"], x["top1"]) for x in lines if x["kind"] == "eval"])
        (tmp_path / name / "run.json").write_text(json.dumps(run.to_json()))
        (tmp_path / name / "data.json").write_text(json.dumps({"num_train": 10}))
        proof = audit(tmp_path / name)
        assert proof.failure is None and proof.steps == len(alone) and proof.substituted_clips > 0
    assert sorted(found[0]) == sorted(found[1]) and evals[0] == evals[1] and evals[0][0][0] == 4
    assert {path for _, path, _ in found[0]} == {"2.mp4", "5.mp4", "11.mp4"}
