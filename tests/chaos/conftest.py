"""Clusters of several nodes on this machine, a small dataset, and a run that is long enough to be disturbed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from mgray.config import Run
from mgray.data.ingest import ingest
from mgray.data.synthetic import write_motion_videos
from mgray.report.records import RunRecords, read_run
from mgray.trainer import train
from tests.integration.test_equality import equality_run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 training and 16 validation videos of four motions, 12 frames of 64x48 pixels, ingested."""
    root = tmp_path_factory.mktemp("motion")
    write_motion_videos(str(root / "videos"), classes=4, clips_per_class=16, frames=12, width=64, height=48, seed=0)
    ingest(str(root / "videos"), str(root / "shards"), val_fraction=0.25, num_workers=2)
    ray.shutdown()
    return str(root / "shards")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs of its own; tests add the nodes that train."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def long_run(shards: str, storage: Path, name: str, epochs: int = 240, **scale: object) -> Run:
    """The run of the equality tests, longer; its validations are few."""
    run = equality_run(shards, storage, name, **scale)
    return dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, epochs=epochs, lr_steps=(0, epochs - 1)),
        train=dataclasses.replace(run.train, precise_bn=0, evals=1),
    )


def trained_while(run: Run, disturb: Callable[[], None]) -> RunRecords:
    """Train a run in a thread while `disturb` does its work here (nodes are added and removed by the main thread only)."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            train(run)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    disturb()
    thread.join(400)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    return read_run(Path(run.storage) / run.name)
