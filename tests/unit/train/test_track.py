"""Trackers get what the records get, over several attempts, and never end a training."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mgray.check import check_tracker
from mgray.config import Run
from mgray.errors import ConfigError
from mgray.plan import Plan, PlanSpec
from mgray.report.records import read_run
from mgray.train import track
from mgray.train.metrics import METRICS, MetricsWriter
from mgray.train.track import Sender, open_sender

PLAN = Plan.compile(PlanSpec(epochs=1, lr_steps=(0,)), 6400)


def write(writer: MetricsWriter, steps: range) -> None:
    for index in steps:
        writer.step(
            PLAN.step_at(index), loss=float(index), top1=0.5, checksum=1, step_s=0.5, wait_s=0.25, train_s=index
        )
        writer.flush()
    writer.validation(
        steps.stop, epoch=0.1, scores={"top1": 0.75, "loss": 2.0, "num_clips": 9}, eval_s=1.0, train_s=2.0
    )
    writer.close()


class FakeWandb(ModuleType):
    """Keeps what it is given, by run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.options: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.options.append(options)
        logged = self.runs.setdefault(options["id"], [])
        module = self

        class One:
            def log(self, values: dict[str, float], step: int) -> None:
                logged.append((step, values))

            def finish(self) -> None:
                module.finished += 1

        return One()


def test_wandb_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    wandb.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = Run(name="mine", track="wandb")
    write(MetricsWriter(tmp_path, 0, sender=open_sender(run, tmp_path)), range(2))
    write(MetricsWriter(tmp_path, 1, sender=open_sender(run, tmp_path)), range(2, 3))
    assert len(wandb.runs) == 1 and wandb.finished == 2
    assert [(o["name"], o["project"], o["resume"]) for o in wandb.options] == [("mine", "mgray", "allow")] * 2
    assert wandb.options[0]["config"]["track"] == "wandb"
    (logged,) = wandb.runs.values()
    assert [(step, values["train/loss"]) for step, values in logged if "train/loss" in values] == [(0, 0), (1, 1), (2, 2)]  # fmt: skip
    assert [(step, values) for step, values in logged if "val/top1" in values] == [
        (2, {"val/top1": 0.75, "val/loss": 2.0}),
        (3, {"val/top1": 0.75, "val/loss": 2.0}),
    ]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_writes_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(track, "CLOSE_S", 120.0)
    folder = tmp_path / "mine"
    run = Run(name="mine", storage=str(tmp_path), track="mlflow")
    write(MetricsWriter(folder, 0, sender=open_sender(run, folder)), range(2))
    write(MetricsWriter(folder, 1, sender=open_sender(run, folder)), range(2, 3))
    assert [json.loads(line)["kind"] for line in (folder / METRICS).read_text().splitlines()].count("event") == 0
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("mgray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "mine" and found.info.status == "FINISHED"
    assert found.data.params["plan.lr"] == str(run.plan.lr)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_tracker_that_fails_is_an_event(tmp_path: Path) -> None:
    class Failing:
        def log(self, values: Mapping[str, float], step: int) -> None:
            raise ConnectionError("the server\nis away")

        def close(self) -> None:
            raise AssertionError

    write(MetricsWriter(tmp_path, 0, sender=Sender(Failing)), range(3))
    events = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines() if '"event"' in line]
    assert [(event["event"], event["detail"]) for event in events] == [
        ("track", "left out (ConnectionError: the server is away)")
    ]


def test_training_does_not_wait_for_a_slow_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(track, "CLOSE_S", 0.01)
    release = threading.Event()

    class Slow:
        def log(self, values: Mapping[str, float], step: int) -> None:
            release.wait(60)

        def close(self) -> None: ...

    sender = Sender(Slow)
    for step in range(1000):
        sender.log({"a": 1.0}, step)
    sender.close()
    assert "has not taken everything" in sender.failure
    release.set()


@pytest.mark.parametrize(("kind", "package"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_missing_package_is_refused_before_training(
    kind: Any, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for check in (lambda: check_tracker(Run(track=kind)), lambda: open_sender(Run(track=kind), tmp_path)):
        with pytest.raises(ConfigError, match=rf"track = '{kind}': is not installed; pip install {package} "):
            check()
    assert open_sender(Run(), tmp_path) is None


def test_tracking_changes_no_digest() -> None:
    assert Run(track="wandb").digest() == Run().digest()


def test_samples_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgray.train import metrics

    class Sampler:
        def sample(self) -> dict[str, float | None]:
            return {"cpu": 0.5, "gpu": None, "gpu_gib": None}

    monkeypatch.setattr(metrics, "SAMPLE_S", 0.0)
    writer = MetricsWriter(tmp_path, 0, load=Sampler())  # type: ignore[arg-type]
    write(writer, range(2))
    for name, tree in (("run", Run().to_json()), ("plan", PLAN.to_json())):
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
    records = read_run(tmp_path)
    assert [(sample.step, sample.cpu) for sample in records.samples] == [(0, 0.5), (1, 0.5)]
    assert all(sample.gpu != sample.gpu for sample in records.samples)
    assert records.num_unreadable == 0
