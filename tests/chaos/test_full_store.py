"""An object store that holds 512 MiB, into which somebody else puts twice as much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from mgray.report.records import RunRecords
from mgray.trainer import quiet_ray_data
from tests.chaos.conftest import FULL, bore, long_run, trained_while
from tests.support.runs import wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.chaos, FULL]
STORE = 512 << 20
PIECE = 64 << 20


@pytest.fixture
def small_store(undisturbed: RunRecords) -> Iterator[None]:
    """A local Ray whose object store is small."""
    ray.init(
        address="local",
        num_cpus=6,
        object_store_memory=STORE,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.usefixtures("small_store")
def test_a_full_object_store(undisturbed: RunRecords, shards: str, tmp_path: Path) -> None:
    """Ray spills what does not fit, and the run goes on."""
    run = long_run(shards, tmp_path, "full", workers=2)
    held: list[ray.ObjectRef] = []

    def disturb() -> None:
        wait_for_step(tmp_path / "full", 3)
        for number in range(2 * STORE // PIECE):
            held.append(ray.put(np.full(PIECE, number, np.uint8)))

    records = trained_while(run, disturb)
    assert ray.cluster_resources()["object_store_memory"] <= STORE < sum(len(ray.get(piece)) for piece in held)
    bore("object store filled by others", records, undisturbed, same_ranks=True, repeated=20)
