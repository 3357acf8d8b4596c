"""Nodes that are lost, given notice, and added while a run trains on them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mgray.report.records import RunRecords
from tests.chaos.conftest import long_run, trained_while
from tests.integration.test_equality import wait_for_step

pytestmark = pytest.mark.chaos


def gap_s(records: RunRecords) -> list[float]:
    """Seconds from the last step of each attempt to the first of the next."""
    lines = [json.loads(line) for line in (records.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return [b["time"] - a["time"] for a, b in itertools.pairwise(steps) if b["attempt"] != a["attempt"]]


def workers_of(records: RunRecords) -> list[str]:
    return [e.detail for e in records.events if e.event in ("start", "resume")]


def test_a_node_is_lost_and_another_comes(cluster: Cluster, shards: str, tmp_path: Path) -> None:
    """Two workers, one after the loss, two again: the steps since the last checkpoint are repeated after the loss, none at the growth."""
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    folder = tmp_path / "nodes"
    run = long_run(shards, tmp_path, "nodes", epochs=1200, workers="1:2", save_every=20, resize_every_s=1.0)

    def disturb() -> None:
        wait_for_step(folder, 30)
        cluster.remove_node(lost, allow_graceful=False)
        wait_for_step(folder, 80)
        cluster.add_node(num_cpus=1)

    records = trained_while(run, disturb)
    print(
        workers_of(records),
        gap_s(records),
        records.num_repeated,
        [(e.step, e.event, e.detail, e.time) for e in records.events if e.event != "checkpoint"],
    )
    assert workers_of(records) == ["2 workers on cpu", "1 workers on cpu", "2 workers on cpu"]
    assert records.num_repeated <= 20
    assert gap_s(records)[0] < 20
