"""The bench of coordination runs the real parts, and they do not grow with the world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from mgray.bench.scale import PARTS, bench_scale, plan_of
from mgray.cli.main import main
from mgray.plan import BatchShape
from mgray.train import step as step_module
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from workloads import WORKLOADS

RUN = WORKLOADS["kinetics400_slowfast_r50"]()


def test_every_part_is_measured_on_any_number_of_ranks() -> None:
    for row in bench_scale(RUN, [1, 300], 32):
        assert row.parts_ms.keys() == set(PARTS) and all(value > 0 for value in row.parts_ms.values())
        assert row.rank0_ms == pytest.approx(sum(row.parts_ms.values())) and row.critical_ms >= row.last_ms > 0
        assert row.plan_steps == plan_of(RUN, row.ranks).num_steps and row.rss_mib > 10
        assert not dist.is_initialized()
    assert plan_of(RUN, 1).num_steps > 1_000_000


def test_json_and_bad_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scale", "--ranks", "2", "--steps", "32", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ranks"] == 2 and 0 < row["share_of_300_ms"] < 1
    assert main(["bench", "scale", "--ranks", "0"]) == 2
    assert "ranks = 0: must be at least 1" in capsys.readouterr().err


class Asked(LocalSession):
    """Counts the process groups that are asked for."""

    asked = 0

    def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        self.asked += 1
        return object()  # type: ignore[return-value]


@pytest.mark.parametrize("bn_groups", [512, 4096])
def test_shares_of_other_ranks_are_worked_out_once(monkeypatch: pytest.MonkeyPatch, bn_groups: int) -> None:
    calls: list[int] = []
    share_of = step_module.share_of
    monkeypatch.setattr(step_module, "share_of", lambda *args: calls.append(args[0]) or share_of(*args))
    session = Asked(Path("unused"), rank=700, world_size=1024)
    worker = Worker(nn.Identity(), session, RUN.data, RUN.train)
    shape = BatchShape(8192, 8, 32, 32)
    first = worker.micro_batches(shape, bn_groups)
    calls.clear()
    asked = session.asked
    assert worker.micro_batches(shape, bn_groups) == first
    assert len(calls) <= 4 and session.asked == asked == (512 if bn_groups == 512 else 0)
