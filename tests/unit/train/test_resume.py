"""Which checkpoint the ranks go on from."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from mgray.errors import CheckpointError
from mgray.plan.state import ScheduleState
from mgray.train import resume
from mgray.train.checkpoint import CheckpointMeta, Snapshot, write_checkpoint
from mgray.train.resume import agreed_checkpoint
from mgray.train.session import LocalSession

META = CheckpointMeta(
    step=0, run_digest="", data_digest="", schedule=ScheduleState(""), classes=(), run={}, train_s=1.0, attempt=0
)


@dataclass
class Ranks:
    """Ranks as threads: what each finds of its own view of the storage."""

    count: int
    barrier: threading.Barrier = field(init=False)
    said: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count)

    def gather(self, own: Any, session: LocalSession) -> list[Any]:
        self.said[session.rank] = own
        self.barrier.wait(10)
        found = [self.said[rank] for rank in range(self.count)]
        self.barrier.wait(10)
        return found


def agreed(monkeypatch: pytest.MonkeyPatch, *views: Path) -> list[Any]:
    """The step that each rank goes on from, None where it begins, or the error."""
    monkeypatch.setattr(resume, "of_all_ranks", Ranks(len(views)).gather)

    def rank(number: int) -> Any:
        session = LocalSession(views[number], rank=number, world_size=len(views))
        try:
            with session.load() as folders:
                found = agreed_checkpoint(folders, session)
                return None if found is None else (found[1].step, found[0].parent == views[number])
        except CheckpointError as error:
            return str(error)

    with ThreadPoolExecutor(len(views)) as pool:
        return list(pool.map(rank, range(len(views))))


def view(folder: Path, *steps: int) -> Path:
    folder.mkdir(exist_ok=True)
    for step in steps:
        path = folder / f"checkpoint_{step:09d}"
        path.mkdir()
        write_checkpoint(path, dataclasses.replace(META, step=step), cast(Snapshot, _Nothing()))
    return folder


class _Nothing:
    def on_host(self) -> dict[str, Any]:
        return {}


def test_ranks_go_on_from_the_newest_that_all_find_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stale = view(tmp_path / "whole", 10, 20, 30), view(tmp_path / "stale", 10, 20)
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "checkpoint_000000020" / "state.pt").write_bytes(b"half")
    assert agreed(monkeypatch, whole, whole, whole) == [(30, True)] * 3
    assert agreed(monkeypatch, whole, stale) == agreed(monkeypatch, stale, whole) == [(20, True)] * 2
    assert agreed(monkeypatch, whole, cut) == [(30, True)] * 2
    assert agreed(monkeypatch, cut, stale) == [(10, True)] * 2
    empty = view(tmp_path / "empty")
    assert agreed(monkeypatch, empty, empty) == [None, None]


def test_ranks_that_find_none_in_common_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them begins anew, or goes on alone."""
    one, other, empty = view(tmp_path / "one", 10), view(tmp_path / "other", 20), view(tmp_path / "empty")
    for views, steps in (((one, other), "[[10], [20]]"), ((one, empty), "[[10], []]")):
        for error in agreed(monkeypatch, *views):
            assert f"differs between workers, who find those of steps {steps} whole; see" in error
    (one / "checkpoint_000000010" / "meta.json").unlink()
    found = agreed(monkeypatch, one, one)
    assert all("holds 1 checkpoints, none of them whole" in error for error in found)
