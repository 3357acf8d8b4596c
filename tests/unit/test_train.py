"""What `train` does around its attempts: what it refuses and leaves alone, and what it says where somebody or the cluster ends a run."""

from __future__ import annotations

import contextlib
import io
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from mgray import trainer
from mgray.attempts import Attempts
from mgray.config import DataSection, Run
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import CheckpointError, ConfigError, TrainingError
from mgray.trainer import train
from tests.support.checkpoints import RUN
from tests.support.shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("shards"), train=4, val=1)


@pytest.fixture
def run(tmp_path: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One whose Ray is none."""

    @contextlib.contextmanager
    def no_ray(run: Run, *, verbose: bool = False) -> Iterator[bool]:
        yield False

    method = types.SimpleNamespace(remote=lambda: {})
    monkeypatch.setattr(trainer, "ray_running", no_ray)
    monkeypatch.setattr(trainer, "num_gpus", lambda: 0.0)
    monkeypatch.setattr(trainer, "capacity", lambda need: 1)
    monkeypatch.setattr(trainer, "start_driver", lambda *_: types.SimpleNamespace(status=method))
    monkeypatch.setattr(trainer, "announce", lambda folder: None)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    return Run(name="mine", storage=str(tmp_path), data=DataSection(path=shards.root), plan=RUN.plan, model=RUN.model)


def checkpoint(run: Run, digest: str, step: int = 20) -> None:
    path = Path(run.storage) / run.name / f"checkpoint_{step:09d}"
    path.mkdir(parents=True)
    (path / "meta.json").write_text(json.dumps({"attempt": 0, "step": step, "data_digest": digest}))


def ends(monkeypatch: pytest.MonkeyPatch, how: BaseException | str) -> None:
    def work(_: Attempts) -> str:
        if isinstance(how, BaseException):
            raise how
        return how

    monkeypatch.setattr(Attempts, "work", work)


def trained(run: Run) -> str:
    """What it prints."""
    out = io.StringIO()
    try:
        train(run, console=Console(file=out))
    finally:
        out.seek(0)
        print(out.getvalue())
    return out.getvalue()


def test_other_data_are_refused_before_the_records_say_so(run: Run) -> None:
    checkpoint(run, "of other data")
    folder = Path(run.storage) / run.name
    (folder / "data.json").write_text('{"digest": "of other data"}')
    with pytest.raises(CheckpointError, match=r"data\.path = .*: holds other data than .*/mine was trained on"):
        trained(run)
    assert json.loads((folder / "data.json").read_text()) == {"digest": "of other data"}
    assert not (folder / "run.json").exists() and not (folder / "plan.json").exists()


def test_ctrl_c_says_how_to_go_on(
    run: Run, shards: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(run, shards.digest())
    ends(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trained(run)
    out = capsys.readouterr().out
    assert "mine: trains on CPUs: Ray finds no GPU\n" in out
    assert "mine: interrupted; the same command goes on from step 20" in out


def test_a_cluster_that_is_lost_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ray.exceptions.ActorUnavailableError("gone\naway", None))
    with pytest.raises(
        TrainingError, match=r"run = 'mine': lost its Ray cluster \(.*; start it again: .* step 0"
    ) as caught:
        trained(run)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_that_ray_wraps_stays_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ConfigError("name", "mine", "is taken", "give another")
    ends(monkeypatch, ray.exceptions.RayTaskError("f", "a page of tracebacks", mine).as_instanceof_cause())
    with pytest.raises(ConfigError) as caught:
        trained(run)
    assert caught.value is mine


def test_a_run_that_is_stopped_says_from_where_it_goes_on(
    run: Run, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint, where steps after it were lost with a worker."""
    checkpoint(run, shards.digest())
    ends(monkeypatch, "stop")
    assert "mine: stopped before step 20 of" in trained(run)


def test_a_finished_run_starts_no_ray(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose tracker failed when it was closed."""
    folder = Path(run.storage) / run.name
    folder.mkdir(parents=True)
    (folder / "data.json").write_text('{"multi_label": false}')
    events: list[dict[str, Any]] = [
        {"kind": "event", "attempt": 0, "step": 9, "event": event, "detail": detail, "time": 0.0}
        for event, detail in (("finish", ""), ("track", "left out (gone)"))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.setattr(trainer, "ray_running", lambda *_, **__: pytest.fail("it starts Ray"))
    assert "is trained to its end already" in trained(run)
