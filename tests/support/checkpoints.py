"""A checkpoint of a small untrained model, made without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mgray.config import DataSection, ModelSection, Run, TrainSection
from mgray.data.shards.shard_set import ShardSet
from mgray.model import build_model
from mgray.plan import PlanSpec
from mgray.plan.state import ScheduleState
from mgray.train.checkpoint import CheckpointMeta, snapshot_of, write_checkpoint

RUN = Run(
    plan=PlanSpec(
        frames=4, crop=16, batch=4, stride=2, jitter_min=20, jitter_max=24, epochs=4, lr_steps=(0, 3), lr_factors=(1.0, 0.1), bn_group=2
    ),
    data=DataSection(path="unused"),
    model=ModelSection(name="slowfast", depth=10, width=8, dropout=0.0),
    train=TrainSection(precision="float64", eval_batch=8),
)  # fmt: skip


def write_run(folder: Path, shards: ShardSet, run: Run = RUN) -> Path:
    """A run's folder with one checkpoint of random weights that were made from a fixed seed."""
    torch.manual_seed(0)
    model = build_model(run.model, len(shards.classes)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    meta = CheckpointMeta(
        step=7, run_digest=run.digest(), data_digest=shards.digest(), schedule=ScheduleState("plan"), classes=shards.classes,
        run=run.to_json(), train_s=1.0, attempt=0,
    )  # fmt: skip
    checkpoint = folder / "checkpoint_000000007"
    checkpoint.mkdir(parents=True)
    write_checkpoint(checkpoint, meta, snapshot_of(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    (folder / "data.json").write_text(json.dumps({"shards": shards.root}))
    return folder
