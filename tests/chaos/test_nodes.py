"""Nodes that are lost, given notice, and added while a run trains on them.

Each run is stopped once it has borne that, and compared with one on one worker that was stopped before the same step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mgray.config import Run
from mgray.control import ask, driver_of, status_of
from mgray.report.records import RunRecords, read_run
from tests.chaos.conftest import FULL, bore, gaps_s, long_run, trained_to, trained_while, wait_until
from tests.support.runs import wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.chaos, FULL]
EPOCHS = 2000
"""Enough that no run comes to its end before it is stopped."""
AFTER = 10
"""Steps that a run goes on for after what it had to bear."""


def float64_run(shards: str, storage: Path, name: str, **scale: object) -> Run:
    return long_run(shards, storage, name, epochs=EPOCHS, precision="float64", **scale)


def stop_soon(folder: Path, attempts: int) -> None:
    """Stop a run some steps after its last attempt, of so many, has begun."""
    began: list[int] = []

    def begun() -> bool:
        began[:] = [e.step for e in read_run(folder).events if e.event in ("start", "resume")]
        return len(began) == attempts

    wait_until(begun, 240)
    wait_for_step(folder, began[-1] + AFTER)
    with driver_of(folder) as driver:
        ask(driver, "stop")


def undisturbed(records: RunRecords, shards: str, storage: Path) -> RunRecords:
    """The same run on one worker, as far as `records` go."""
    return trained_to(float64_run(shards, storage, "undisturbed", workers=1), len(records.steps.step))


def workers_of(records: RunRecords) -> list[str]:
    return [e.detail for e in records.events if e.event in ("start", "resume")]


def test_a_node_is_lost_and_another_comes(cluster: Cluster, shards: str, tmp_path: Path) -> None:
    """Two workers, one after the loss, two again: the steps since the last checkpoint are repeated after the loss, none at the growth."""
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    folder = tmp_path / "nodes"
    run = float64_run(shards, tmp_path, "nodes", workers="1:2", resize_every_s=1.0)

    def disturb() -> None:
        wait_for_step(folder, 30)
        cluster.remove_node(lost, allow_graceful=False)
        wait_for_step(folder, 60)
        cluster.add_node(num_cpus=1)
        stop_soon(folder, attempts=3)

    records = trained_while(run, disturb)
    assert workers_of(records) == ["2 workers on cpu", "1 workers on cpu", "2 workers on cpu"]
    assert [e.detail for e in records.events if e.event == "leave"] == ["resize", "stop"]
    alone = undisturbed(records, shards, tmp_path)
    bore("a node lost, another joins", records, alone, same_ranks=False, repeated=20)
    print("seconds without a step:", gaps_s(records))


def test_a_node_is_given_notice(cluster: Cluster, shards: str, tmp_path: Path) -> None:
    """Its workers save before the next step and go on without it: nothing is repeated."""
    cluster.add_node(num_cpus=1)
    going = cluster.add_node(num_cpus=1)
    folder = tmp_path / "notice"
    run = float64_run(shards, tmp_path, "notice", workers="1:2", save_every=100_000, save_s=0.0)

    def disturb() -> None:
        wait_for_step(folder, 30)
        # what an autoscaler does when a spot instance is reclaimed
        drain = [
            "drain-node", "--address", cluster.address, "--node-id", going.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "reclaimed", "--deadline-remaining-seconds", "60",
        ]  # fmt: skip
        subprocess.run([str(Path(sys.executable).parent / "ray"), *drain], check=True, capture_output=True, timeout=60)
        stop_soon(folder, attempts=2)

    records = trained_while(run, disturb)
    assert workers_of(records) == ["2 workers on cpu", "1 workers on cpu"]
    assert [e.detail for e in records.events if e.event == "leave"] == [f"notice: {going.node_id}", "stop"]
    bore("notice for a node (drained)", records, undisturbed(records, shards, tmp_path), same_ranks=False, repeated=0)


def test_a_run_waits_for_room_and_says_so(
    cluster: Cluster, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = long_run(shards, tmp_path, "waits", epochs=40, workers=2)
    cluster.add_node(num_cpus=1)

    def disturb() -> None:
        import time

        deadline, out = time.monotonic() + 60, ""
        while "waiting for room" not in out:
            out += capsys.readouterr().out
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "waiting for room: 2 workers of 1 CPU each, the cluster has room for 1" in out
        with driver_of(tmp_path / "waits") as driver:
            assert "step" not in status_of(driver)
        cluster.add_node(num_cpus=1)

    records = trained_while(run, disturb)
    assert workers_of(records) == ["2 workers on cpu"]
    assert json.loads((tmp_path / "waits" / "run.json").read_text())["scale"]["workers"] == 2
