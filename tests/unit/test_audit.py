"""The ledger of a run proves what it trained on, and shows the first step where anything differs."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgray.audit import Audit, audit
from mgray.cli.main import main
from mgray.config import DataSection, Run, TrainSection
from mgray.errors import DataError
from mgray.ledger import FAULT, HEADER, RECORD, LedgerWriter, body_of, chained, samples_at, words_of
from mgray.plan import Plan, PlanSpec, sample_at, substitute_at
from mgray.plan.state import Amendment, ScheduleState

NUM_SAMPLES = 37
RUN = Run(
    name="audited",
    plan=PlanSpec(
        frames=8, crop=32, batch=4, stride=1, jitter_min=36, jitter_max=40, epochs=30, lr_steps=(0, 20), lr_factors=(1.0, 0.1),
        long_cycle="run", short_cycle=True, bn_group=4, size_multiple=8,
    ),
    data=DataSection(path="clips"),
    train=TrainSection(seed=5),
)  # fmt: skip
PLAN = Plan.compile(RUN.plan, NUM_SAMPLES)
END = PLAN.num_steps


class Writer:
    """Writes a run's folder as training does."""

    def __init__(self, folder: Path, state: ScheduleState | None = None) -> None:
        self.folder, self.attempt = folder, -1
        self.digests = {0: 0}
        folder.mkdir(exist_ok=True)
        self.state = state or ScheduleState(PLAN.digest())
        self.plan = self.state.plan(PLAN)
        for name, tree in (
            ("run", RUN.to_json()),
            ("data", {"num_train": NUM_SAMPLES}),
            ("schedule", self.state.to_json()),
        ):
            (folder / f"{name}.json").write_text(json.dumps(tree))

    def line(self, **values: object) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def train(self, start: int, end: int, *, finish: bool = False, broken: tuple[int, ...] = ()) -> None:
        self.attempt += 1
        self.line(kind="event", event="resume" if start else "start", step=start)
        for sample in broken:
            self.line(kind="quarantine", split="train", sample=sample)
        ledger = LedgerWriter(self.folder, self.attempt, start, self.digests[start])
        for index in range(start, end):
            step = self.plan.step_at(index)
            samples, faults = [], []
            for position in step.positions:
                tried = [sample_at(position, NUM_SAMPLES, RUN.train.seed)]
                probe = 0
                while tried[-1] in broken:
                    sample = substitute_at(position, probe, NUM_SAMPLES, RUN.train.seed)
                    tried += [sample] if sample != tried[0] else []
                    probe += 1
                samples.append(tried[-1])
                faults += [(index, position, sample, tried[-1]) for sample in tried[:-1]]
            if faults:
                ledger.faults(faults)
            checksum = int(words_of(np.array(step.positions), np.array(samples)).sum())
            version = sum(amendment.from_step <= index for amendment in self.state.amendments)
            ledger.append(step, version=version, world_size=2, checksum=checksum, substituted=len(faults))
            self.digests[index + 1] = ledger.digest
        ledger.close()
        if finish:
            self.line(kind="event", event="finish", step=end)

    def checkpoint(self, step: int, digest: int | None = None) -> None:
        folder = self.folder / f"checkpoint_{step:09d}"
        folder.mkdir(exist_ok=True)
        ledger = f"{self.digests[step] if digest is None else digest:016x}"
        tree = {"step": step, "attempt": self.attempt, "schedule": self.state.to_json(), "ledger": ledger}
        (folder / "meta.json").write_text(json.dumps(tree))

    def file(self, number: int = 0) -> Path:
        return self.folder / "ledger" / f"{number:05d}.bin"


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "audited")


def failed(writer: Writer) -> tuple[int, str]:
    found = audit(writer.folder)
    assert found.failure is not None
    assert found.failure.step == found.steps, "all before it is proven"
    return found.failure.step, found.failure.field


def rechained(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the records and make the chain of digests whole again, as one who knows how would."""
    content = path.read_bytes()
    parent = int(np.frombuffer(content[: HEADER.itemsize], HEADER)[0]["parent"])
    records = change(np.frombuffer(content[HEADER.itemsize :], RECORD).copy())
    for record in records:
        parent = chained(parent, body_of(record))
        record["digest"] = parent
    path.write_bytes(content[: HEADER.itemsize] + records.tobytes())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10_000), st.integers(0, 2**63), st.integers(0, 10**12))
def test_samples_of_many_positions_are_those_of_each(num_samples: int, seed: int, first: int) -> None:
    positions = np.arange(first, first + 40)
    expected = [sample_at(int(position), num_samples, seed) for position in positions]
    assert samples_at(positions, num_samples, seed).tolist() == expected


def test_a_record_is_64_bytes(writer: Writer) -> None:
    writer.train(0, 10)
    assert RECORD.itemsize == 64 and writer.file().stat().st_size == HEADER.itemsize + 10 * 64


def test_a_whole_run_is_proven(writer: Writer) -> None:
    writer.train(0, END, finish=True)
    writer.checkpoint(END)
    writer.checkpoint(10)
    positions = PLAN.done_before(END)[0]
    assert audit(writer.folder) == Audit(
        run="audited", steps=END, planned_steps=END, positions=positions, epochs=positions / NUM_SAMPLES, attempts=1,
        repeated_steps=0, substituted_clips=0, checkpoints=2, failure=None,
    )  # fmt: skip
    text = f"{END} of {END} steps, positions 0 to {positions - 1:,} each exactly once"
    assert text in str(audit(writer.folder))


def test_attempts_that_overlap_are_one_history(writer: Writer) -> None:
    """Killed twice, once while a record was written; one attempt did not get anywhere."""
    writer.train(0, 20)
    writer.checkpoint(15)
    with writer.file(0).open("ab") as file:
        file.write(b"torn record")
    writer.train(15, 15)
    writer.train(15, 30)
    writer.checkpoint(25)
    writer.train(25, END, finish=True)
    writer.checkpoint(END)
    found = audit(writer.folder)
    assert (found.failure, found.steps, found.attempts, found.repeated_steps, found.checkpoints) == (
        None,
        END,
        4,
        10,
        3,
    )


def test_a_run_in_progress_is_proven_as_far_as_it_is(writer: Writer) -> None:
    writer.train(0, 12)
    with writer.file().open("ab") as file:
        file.write(bytes(17))
    assert (audit(writer.folder).failure, audit(writer.folder).steps) == (None, 12)
    writer.line(kind="event", event="finish", step=12)
    assert failed(writer) == (12, "record")


@pytest.mark.parametrize("field", [name for name in RECORD.names or () if name not in ("digest", "world_size")])
def test_each_field_is_compared_even_where_the_chain_is_whole(writer: Writer, field: str) -> None:
    writer.train(0, END, finish=True)

    def change(records: np.ndarray) -> np.ndarray:
        records[field][17] += 1
        return records

    rechained(writer.file(), change)
    assert failed(writer) == (17, field)


def test_a_change_that_no_plan_knows_of_breaks_the_chain(writer: Writer) -> None:
    writer.train(0, END)
    content = bytearray(writer.file().read_bytes())
    at = HEADER.itemsize + 9 * 64 + (RECORD.fields or {})["world_size"][1]
    content[at] ^= 1
    writer.file().write_bytes(content)
    assert failed(writer) == (9, "digest")


def test_any_byte_that_changes_is_noticed(writer: Writer) -> None:
    writer.train(0, 30)
    whole = writer.file().read_bytes()
    for at in random.Random(0).sample(range(HEADER.itemsize, len(whole)), 60):
        content = bytearray(whole)
        content[at] ^= 0x10
        writer.file().write_bytes(content)
        assert failed(writer)[0] == (at - HEADER.itemsize) // 64


@pytest.mark.parametrize("whole_chain", [True, False])
def test_a_dropped_or_doubled_record_is_found(writer: Writer, whole_chain: bool) -> None:
    for change in (lambda r: np.delete(r, 11), lambda r: np.insert(r, 11, r[10])):
        again = Writer(writer.folder.parent / "again")
        again.train(0, END, finish=True)
        if whole_chain:
            rechained(again.file(), change)
        else:
            content = again.file().read_bytes()
            records = change(np.frombuffer(content[HEADER.itemsize :], RECORD))
            again.file().write_bytes(content[: HEADER.itemsize] + records.tobytes())
        assert failed(again) == (11, "step")
        again.file().unlink()


def test_a_hole_between_attempts_is_found(writer: Writer) -> None:
    writer.train(0, 30)
    writer.train(20, END)
    content = writer.file().read_bytes()
    writer.file().write_bytes(content[: HEADER.itemsize + 18 * 64 + 5])
    assert failed(writer) == (18, "record")
    assert "cut off after 5 bytes" in str(audit(writer.folder))


def test_an_attempt_that_went_on_from_another_history_is_found(writer: Writer) -> None:
    writer.train(0, 30)
    writer.digests[20] ^= 1
    writer.train(20, END)
    assert failed(writer) == (20, "digest")


def test_a_checkpoint_of_another_history_is_found(writer: Writer) -> None:
    writer.train(0, END)
    writer.checkpoint(25, digest=1234)
    assert failed(writer) == (25, "checkpoint's digest")


def test_steps_after_the_end_are_found(writer: Writer) -> None:
    writer.train(0, END)
    rechained(writer.file(), lambda records: np.append(records, records[-1:]))
    assert failed(writer) == (END, "step")


def test_substitutes_of_broken_videos_are_proven_too(writer: Writer) -> None:
    writer.train(0, END, broken=(3, 4, 20), finish=True)
    found = audit(writer.folder)
    assert found.failure is None
    seen = [sample_at(p, NUM_SAMPLES, RUN.train.seed) for p in range(found.positions)]
    assert found.substituted_clips == sum(sample in (3, 4, 20) for sample in seen) > 0
    path = writer.file().with_suffix(".faults")
    rows = np.frombuffer(path.read_bytes(), FAULT).copy()
    first = int(rows["step"][5])
    rows["substitute"][5] = (rows["substitute"][5] + 1) % NUM_SAMPLES
    path.write_bytes(rows.tobytes())
    assert failed(writer)[0] == first
    path.unlink()
    assert failed(writer)[0] == int(rows["step"][0])


def test_a_substitute_for_a_video_that_nobody_reported_is_found(writer: Writer) -> None:
    writer.train(0, END, broken=(3,), finish=True)
    metrics = writer.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"sample": 3', '"sample": 5'))
    assert failed(writer)[1] == "substitute"


def test_amendments_are_part_of_the_plan(tmp_path: Path) -> None:
    half = PLAN.phases[0].first_step + 5
    state = ScheduleState(PLAN.digest()).amended(Amendment("rate", half, 0.5)).amended(Amendment("stop", END - 3))
    writer = Writer(tmp_path / "audited", state)
    writer.train(0, END - 3, finish=True)
    found = audit(writer.folder)
    assert (found.failure, found.steps, found.planned_steps) == (None, END - 3, END - 3)
    (writer.folder / "schedule.json").write_text(json.dumps(ScheduleState(PLAN.digest()).to_json()))
    assert failed(writer)[0] == half


def test_exit_status_and_output(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    writer.train(0, END, finish=True)
    assert main(["audit", str(writer.folder)]) == 0
    assert f"{END} steps, positions 0 to" in capsys.readouterr().out
    assert main(["audit", str(writer.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failure"] is None
    rechained(writer.file(), lambda records: np.delete(records, 4))
    assert main(["audit", str(writer.folder)]) == 1
    assert "audited: not as planned at step 4 (attempt 0): step is 5, planned 4" in capsys.readouterr().out
    assert main(["audit", str(writer.folder.parent)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    (writer.file()).write_bytes(b"short")
    with pytest.raises(DataError, match="has no ledger folder with a ledger"):
        audit(writer.folder)


def test_another_configuration_does_not_belong(writer: Writer) -> None:
    writer.train(0, 5)
    other = dataclasses.replace(RUN, plan=dataclasses.replace(RUN.plan, lr=0.7))
    (writer.folder / "run.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(DataError, match="does not belong together"):
        audit(writer.folder)
