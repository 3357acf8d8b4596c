"""A rank that runs out of memory among others, over gloo: it recovers alone, or leaves word for the next attempt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mgray.config import TrainSection
from mgray.plan import BatchShape, share_of
from mgray.train.memory import GroupsAtOnce
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.processes import run_together
from tests.support.ranks import GlooSession
from tests.unit.train.test_step import DATA, Cramped, block, network, part

SHAPE, GROUPS, STEPS = BatchShape(16, 2, 6, 6), 8, 3
TRAIN = TrainSection(precision="float64", nesterov=False, momentum=0.0)


def trained(worker: Worker, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(worker.module.parameters(), lr=0.1)
    share = share_of(rank, world_size, SHAPE.clips, GROUPS)
    for _ in range(STEPS):
        worker.step(part(block(SHAPE.clips), share.clips), SHAPE, GROUPS, torch.arange(len(share.clips)), optimizer)
    return worker.module.state_dict()


def _rank(rank: int, world_size: int, folder: str, backward: bool, trial: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    session = GlooSession(Path("unused"), rank=rank, world_size=world_size)
    worker = Worker(
        session.prepare(network()), session, DATA, TRAIN, GroupsAtOnce(Path(folder, "found.json"), "device")
    )
    worker._tries_memory = trial
    if rank == 1:
        Cramped(5, backward).put_on(worker.module[2])
    if trial:
        if rank == 0 and not backward:
            worker.memory.put(SHAPE, GROUPS, world_size, 4, store=False)
        assert worker.warm_up(SHAPE, GROUPS)
    torch.save(trained(worker, rank, world_size), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(folder: Path, *, backward: bool, trial: bool) -> list[int | None]:
    return run_together(_rank, 2, 2, str(folder), backward, trial, within_s=60)


@pytest.mark.parametrize(("backward", "trial"), [(False, False), (False, True), (True, True)])
def test_one_rank_computes_fewer_groups_and_all_come_to_the_same(tmp_path: Path, backward: bool, trial: bool) -> None:
    """A failing forward pass is done anew by that rank alone; a trial before the phase settles it for all, where just one knows a number too."""
    assert run_ranks(tmp_path, backward=backward, trial=trial) == [0, 0]
    alone = trained(Worker(network(), LocalSession(Path("unused")), DATA, TRAIN), 0, 1)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-11, atol=1e-14)
    assert GroupsAtOnce(tmp_path / "found.json", "device").get(SHAPE, GROUPS, 2) == 2


def test_a_failure_among_the_reduction_is_left_to_the_next_attempt(tmp_path: Path) -> None:
    """The others may hold gradients of it already: the step ends in an error, and its batch with fewer groups in the table."""
    assert 0 not in run_ranks(tmp_path, backward=True, trial=False)
    assert GroupsAtOnce(tmp_path / "found.json", "device").get(SHAPE, GROUPS, 2) == 2
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    assert run_ranks(tmp_path, backward=True, trial=False) == [0, 0]
