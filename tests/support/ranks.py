"""Several ranks as plain processes over gloo, without Ray: the loop's arithmetic on any number of workers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgray.config import Run
from mgray.data.shards.shard_set import ShardSet
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from tests.support.processes import run_together


@dataclass
class GlooSession(LocalSession):
    """A rank of a gloo process group; rank 0 keeps the checkpoints."""

    groups: dict[tuple[int, ...], dist.ProcessGroup] = field(default_factory=dict)

    def prepare(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)  # as in RaySession

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        if ranks not in self.groups:
            self.groups[ranks] = dist.new_group(list(ranks))
        return self.groups[ranks]

    def save(self, write, metrics, *, wait=True) -> None:  # type: ignore[no-untyped-def]
        if self.rank == 0:
            super().save(write, metrics, wait=wait)
        dist.barrier()


def _rank(rank: int, world_size: int, run: dict, shards: str, folder: str) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    session = GlooSession(Path(folder), rank=rank, world_size=world_size)
    Loop(Run.from_json(run), session, ShardSet.open(shards), Path(folder), 0).train()
    dist.destroy_process_group()


def train_on_ranks(run: Run, shards: str, folder: Path, world_size: int) -> list[dict]:  # type: ignore[type-arg]
    """Train on `world_size` processes; returns the records of all steps."""
    folder.mkdir(parents=True)
    codes = run_together(_rank, world_size, world_size, run.to_json(), shards, str(folder))
    assert codes == [0] * world_size
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]
