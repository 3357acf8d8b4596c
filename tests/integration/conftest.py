"""One Ray for all tests that need it, and a small ingested dataset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from mgray.config import Run, ScaleSection
from mgray.data.ingest import ingest
from mgray.data.synthetic import write_motion_videos
from mgray.report.records import RunRecords, read_run
from mgray.trainer import ray_running, train
from tests.support.runs import equality_run


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """A local Ray with more CPUs than the machine has: they are bookkeeping."""
    assert not ray.is_initialized()
    with ray_running(Run(scale=ScaleSection(workers=6, cpus=1.0))):
        yield


@pytest.fixture(scope="session")
def shards(ray_instance: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 training and 16 validation videos of four motions, 12 frames of 64x48 pixels, ingested."""
    root = tmp_path_factory.mktemp("motion")
    write_motion_videos(str(root / "videos"), classes=4, clips_per_class=16, frames=12, width=64, height=48, seed=0)
    ingest(str(root / "videos"), str(root / "shards"), val_fraction=0.25, num_workers=2)
    return str(root / "shards")


@pytest.fixture(scope="session")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """The run of the equality tests on one Ray worker."""
    return read_run(train(equality_run(shards, tmp_path_factory.mktemp("one"), "one")).folder)
