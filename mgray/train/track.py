"""Trackers beside TensorBoard: MLflow and Weights & Biases, where they are installed.

One run of theirs for a run of ours, whatever the number of attempts. Values are sent from a thread, so that training never waits for a
server; a tracker that fails is left out with an event and never ends a training.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mgray.check import check_tracker
from mgray.config import Run

PROJECT = "mgray"
"""MLflow's experiment and W&B's project where their environment variables name no other."""
RUN_ID = "mlflow_run_id"
"""File in a run's folder that says which MLflow run it is."""
CLOSE_S = 30.0
MAX_PARAMETER = 500
"""Characters of a parameter that MLflow takes for sure."""


class Tracker(Protocol):
    """Where values go that are logged at a step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None:
        """All is sent when this returns."""


class Sender:
    """Sends to a tracker, which is opened in a thread too; `failure` says why it sends no more, "" while it does."""

    def __init__(self, open_tracker: Callable[[], Tracker]) -> None:
        self.failure = ""
        self._queue: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, args=(open_tracker,), daemon=True, name="mgray-track")
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        if not self.failure:
            self._queue.put((dict(values), step))

    def close(self) -> None:
        """Send what is left, for so long as a server may take."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self.failure = self.failure or f"it has not taken everything within {CLOSE_S:g} s"

    def _send(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            while (item := self._queue.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def open_sender(run: Run, folder: Path) -> Sender | None:
    """The tracker that `run.track` names; None where it names none.

    Raises:
        ConfigError: its package is not installed here.
    """
    check_tracker(run)
    trackers: dict[str, Callable[[], Tracker]] = {
        "mlflow": lambda: MlflowTracker(run, folder),
        "wandb": lambda: WandbTracker(run, folder),
    }
    return Sender(trackers[run.track]) if run.track else None


class MlflowTracker:
    """A run of MLflow's server at MLFLOW_TRACKING_URI, or of the file store `storage`/mlflow."""

    def __init__(self, run: Run, folder: Path) -> None:
        # the file store needs no database; MLflow wants to be told that it is meant
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._mlflow: Any = importlib.import_module("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.absolute().parent / "mlflow").as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        kept = folder / RUN_ID
        if kept.is_file():
            self._id = kept.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
            kept.write_text(self._id)
            for key, value in _flat(run.to_json(), ""):
                self._client.log_param(self._id, key, str(value)[:MAX_PARAMETER])

    def log(self, values: Mapping[str, float], step: int) -> None:
        metric = self._mlflow.entities.Metric
        time_ms = self._mlflow.utils.time.get_current_time_millis()
        self._client.log_batch(self._id, metrics=[metric(name, value, time_ms, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandbTracker:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables hold."""

    def __init__(self, run: Run, folder: Path) -> None:
        wandb: Any = importlib.import_module("wandb")
        identity = hashlib.sha256(f"{run.name} {run.digest()} {folder.absolute()}".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=run.name, id=identity, resume="allow", dir=str(folder),
            config=run.to_json(),
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
