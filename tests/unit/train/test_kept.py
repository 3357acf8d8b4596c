"""The checkpoints in a run's folder: which there are, in which order, and what is cleared away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train

from mgray.train.kept import KEEP, SNAPSHOT, kept_in, tidy
from mgray.train.metrics import next_attempt
from mgray.train.session import RaySession, write_whole


def put(folder: Path, second: int, attempt: int, step: int) -> Path:
    """A checkpoint as Ray names them."""
    path = folder / f"checkpoint_2026-11-28_12-00-{second:02d}.123456"
    path.mkdir()
    (path / "meta.json").write_text(json.dumps({"attempt": attempt, "step": step, "data_digest": "d"}))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_of_the_last_attempt_whatever_the_clocks(tmp_path: Path) -> None:
    first = put(tmp_path, 30, 0, 20)
    damaged = put(tmp_path, 50, 0, 0)
    (damaged / "meta.json").write_text('{"st')
    later, last = put(tmp_path, 10, 1, 15), put(tmp_path, 5, 1, 25)
    (tmp_path / "checkpoint_2026-11-28_12-00-59.123456.part7").mkdir()
    assert [item.path for item in kept_in(tmp_path)] == [last, later, first, damaged]
    assert next_attempt(tmp_path) == 2, "the records are gone, and the next attempt is later all the same"


def test_an_attempt_begins_in_a_tidy_folder(tmp_path: Path) -> None:
    """No leftovers of saves that were cut off, as many checkpoints as are kept, and no list of Ray's that may be cut off too."""
    paths = [put(tmp_path, second, 0, second) for second in range(KEEP + 2)]
    own = tmp_path / "checkpoint_best"
    paths[0].rename(own)
    (tmp_path / "checkpoint_2026-11-28_12-00-59.123456.part7").mkdir()
    (tmp_path / SNAPSHOT).write_text('{"ray_version": "2.6')
    (tmp_path / "metrics.jsonl").write_text("")
    tidy(tmp_path)
    assert names(tmp_path) == sorted(["metrics.jsonl", own.name, *(path.name for path in paths[-KEEP:])])


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "checkpoint_a", fails)
    assert names(tmp_path) == []


def test_a_worker_finds_checkpoints_without_ray_s_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of earlier attempts, of which Ray knows nothing, go as its own come."""
    monkeypatch.setattr(RaySession, "rank", 0)
    monkeypatch.setattr(RaySession, "world_size", 1)
    earlier = [put(tmp_path, second, 0, second) for second in range(3)]
    session = RaySession(None, tmp_path)
    with session.load() as found:
        assert found == earlier[::-1]

    def report(_: Any, *, checkpoint_upload_fn: Callable[[Any, str], ray.train.Checkpoint], **__: Any) -> None:
        saved.append(f"checkpoint_2026-11-28_13-00-0{len(saved)}.000000")
        checkpoint_upload_fn(ray.train.Checkpoint(str(tmp_path)), saved[-1])

    monkeypatch.setattr(ray.train, "report", report)
    saved: list[str] = []
    for number in range(1, KEEP + 1):
        session.save(lambda folder: (folder / "meta.json").write_text("{}") and None, {"step": number})  # type: ignore[func-returns-value]
        assert names(tmp_path) == sorted([*saved, *(path.name for path in earlier[number:])])
