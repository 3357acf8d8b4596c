"""Clusters of several nodes on this machine, a small dataset, runs that are long enough to be disturbed, and the table of what they bore.

CHAOS_TIMES is how often each fault is tried, at other steps each time (1; `make chaos` takes 3).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from mgray.audit import audit
from mgray.config import Run, ScaleSection
from mgray.control import ask, driver_of
from mgray.data.ingest import ingest
from mgray.data.synthetic import write_motion_videos
from mgray.report.records import RunRecords, read_run
from mgray.train.checkpoint import newest_checkpoint
from mgray.trainer import LOCAL_RAY, ray_running, train
from tests.support.runs import assert_same, equality_run, wait_for_step

TIMES = int(os.environ.get("CHAOS_TIMES", "1"))
FULL = pytest.mark.skipif(
    "CHAOS_TIMES" not in os.environ,
    reason="`make test` has the kills of tests/integration/test_equality.py: make chaos",
)
ROWS: dict[str, list[tuple[int, list[float]]]] = {}
"""For each fault the steps that were repeated and the seconds without a step after each attempt that ended, each time."""


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 training and 16 validation videos of four motions, 12 frames of 64x48 pixels, ingested."""
    root = tmp_path_factory.mktemp("motion")
    write_motion_videos(str(root / "videos"), classes=4, clips_per_class=16, frames=12, width=64, height=48, seed=0)
    with ray_running(Run()):
        ingest(str(root / "videos"), str(root / "shards"), val_fraction=0.25, num_workers=2)
    return str(root / "shards")


@pytest.fixture(scope="session")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """The run on two workers."""
    with ray_running(Run(scale=ScaleSection(workers=2))):
        return read_run(train(long_run(shards, tmp_path_factory.mktemp("two"), "two", workers=2)).folder)


@pytest.fixture(scope="module")
def ray_instance() -> Iterator[None]:
    """A local Ray for the faults that need no nodes."""
    with ray_running(Run(scale=ScaleSection(workers=6, cpus=1.0))):
        yield


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs of its own, and without a dashboard that answers Ray's state API; tests add the nodes that train."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", LOCAL_RAY["RAY_API_SERVER_ADDRESS"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def long_run(
    shards: str, storage: Path, name: str, epochs: int = 240, precision: str = "float32", **scale: object
) -> Run:
    """The run of the equality tests, longer; its validations are few.

    In float32 the order of summation, which differs with the number of workers, shows in the losses after some hundred steps.
    """
    run = equality_run(shards, storage, name, **{"save_every": 20, **scale})
    return dataclasses.replace(
        run,
        plan=dataclasses.replace(run.plan, epochs=epochs, lr_steps=(0, epochs - 1)),
        train=dataclasses.replace(run.train, precise_bn=0, evals=1, precision=precision),
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


def trained_to(run: Run, step: int) -> RunRecords:
    """Train a run to the state before a step, undisturbed, and stop it there."""
    folder = Path(run.storage) / run.name

    def stop() -> None:
        wait_for_step(folder, 1)
        with driver_of(folder) as driver:
            ask(driver, "stop", 0.0, step)

    return trained_while(run, stop)


def step_at_random(seed: int, num_steps: int) -> int:
    """A step in the middle half of a run, another for each seed."""
    return random.Random(seed).randrange(num_steps // 4, 3 * num_steps // 4)


def gaps_s(records: RunRecords) -> list[float]:
    """Seconds from the last step of each attempt to the first of the next."""
    lines = [json.loads(line) for line in (records.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return [b["time"] - a["time"] for a, b in itertools.pairwise(steps) if b["attempt"] != a["attempt"]]


def weights(records: RunRecords) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(newest_checkpoint(records.path) / "state.pt", weights_only=True)[
        "model"
    ]
    return found


def bore(
    fault: str, records: RunRecords, undisturbed: RunRecords, *, same_ranks: bool, repeated: int, timed: bool = True
) -> None:
    """A disturbed run came to the same end: bit by bit on as many ranks, else up to the order of summation; note what it cost."""
    if same_ranks:
        ours, theirs = weights(records), weights(undisturbed)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert_same(records, undisturbed)
    proof = audit(records.path)
    assert proof.failure is None, proof
    assert records.num_repeated <= repeated
    ROWS.setdefault(fault, []).append((records.num_repeated, gaps_s(records) if timed else []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | times | steps recomputed | seconds to the next step | lost samples |")
        terminalreporter.write_line("| --- | --- | --- | --- | --- |")
    for fault, rows in ROWS.items():
        steps = span([float(repeated) for repeated, _ in rows])
        seconds = span([max(gaps) for _, gaps in rows if gaps])
        terminalreporter.write_line(f"| {fault} | {len(rows)} | {steps} | {seconds} | 0 |")


def span(values: list[float]) -> str:
    """The least and the largest value, as whole numbers; "" of none."""
    if not values:
        return ""
    least, most = f"{min(values):.0f}", f"{max(values):.0f}"
    return least if least == most else f"{least} to {most}"


def wait_until(condition: Callable[[], bool], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
