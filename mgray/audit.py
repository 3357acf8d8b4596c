"""Audit: a proof, from the ledger of all attempts, that a run trained on what its plan says; or the first step where it did not.

Nothing of the run is believed but its configuration: shapes, rates, positions and the clips' checksums are computed anew, the chain of
digests is followed from the first step through every attempt, and compared with those in the checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mgray.config import Run
from mgray.errors import DataError, MgrayError
from mgray.ledger import FOLDER, AttemptFile, Records, body_of, chained, samples_at, words_of
from mgray.plan import Plan, substitute_at
from mgray.plan.state import ScheduleState

CHUNK = 2048
"""Steps that are compared at once."""
_PLANNED = ("step", "position", "clips", "frames", "height", "width", "lr", "phase", "slot")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The first step that is not as planned."""

    step: int
    field: str
    recorded: str
    planned: str
    attempt: int

    def __str__(self) -> str:
        return f"step {self.step} (attempt {self.attempt}): {self.field} is {self.recorded}, planned {self.planned}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was proven of a run, up to its last step or the first that is not as planned."""

    run: str
    steps: int
    """Steps of the surviving history that are as planned, from the first on."""
    planned_steps: int
    """Of the whole schedule, amendments included."""
    positions: int
    epochs: float
    attempts: int
    repeated_steps: int
    """Steps that were trained again because their first result was lost."""
    substituted_clips: int
    checkpoints: int
    """Whose digest equals that of the ledger."""
    failure: Failure | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.failure is not None:
            return f"{self.run}: not as planned at {self.failure}"
        text = (
            f"{self.run}: {self.steps:,} of {self.planned_steps:,} steps, positions 0 to {self.positions - 1:,} each exactly once "
            f"({self.epochs:.2f} epochs), shapes, rates and clips as planned; {self.attempts} attempts, {self.repeated_steps:,} steps repeated, "
            f"{self.checkpoints} checkpoints match"
        )  # fmt: skip
        return text + (f", {self.substituted_clips:,} clips of substitutes" if self.substituted_clips else "")


def audit(path: Path) -> Audit:
    """Check the ledger of the run in a folder (`storage`/`name`), finished or in progress.

    Raises:
        DataError: the folder is no run's, or has no ledger.
    """
    run, plan, state = _planned(path)
    metrics = _read_metrics(path)
    files = _files(path)
    ends = _kept_ends([file.step for file in files])
    checkpoints = _checkpoints(path)
    auditor = _Auditor(run, plan, state, metrics.quarantined)
    matched = 0
    for number, (file, end) in enumerate(zip(files, ends, strict=True)):
        if file.step >= end and number < len(files) - 1:
            continue  # none of its steps survives
        own = {step: digest for (attempt, step), digest in checkpoints.items() if attempt == file.attempt}
        matched += auditor.follow(file, end, own)
        if auditor.failure is not None:
            break
    if auditor.failure is None and metrics.is_finished and auditor.step < plan.num_steps:
        auditor.fail(files[-1], auditor.step, "record", "missing", "a step (the run has ended)")
    total = sum(file.num_records for file in files)
    return Audit(
        run=run.name, steps=auditor.step, planned_steps=plan.num_steps, positions=auditor.position,
        epochs=auditor.position / plan.num_samples, attempts=len(files),
        repeated_steps=total - auditor.step if auditor.failure is None else 0,
        substituted_clips=auditor.substituted, checkpoints=matched, failure=auditor.failure,
    )  # fmt: skip


class _Auditor:
    """Walks along the surviving history."""

    def __init__(self, run: Run, plan: Plan, state: ScheduleState, quarantined: frozenset[int]) -> None:
        self._seed, self._plan, self._state, self._quarantined = run.train.seed, plan, state, quarantined
        self.step = self.position = self.substituted = 0
        self._digest = 0
        self.failure: Failure | None = None

    def fail(self, file: AttemptFile, step: int, field: str, recorded: object, planned: object) -> None:
        self.failure = Failure(
            step=step, field=field, recorded=str(recorded), planned=str(planned), attempt=file.attempt
        )

    def follow(self, file: AttemptFile, end: float, checkpoints: Mapping[int, int]) -> int:
        """The steps of an attempt that survive, up to `end`; how many of its `checkpoints` have the right digest."""
        if file.step != self.step:
            self.fail(file, self.step, "record", f"missing up to step {file.step}", "every step from the first on")
            return 0
        if file.parent != self._digest:
            self.fail(
                file,
                self.step,
                "digest",
                f"{file.parent:016x}",
                f"{self._digest:016x}, of the steps before the attempt",
            )
            return 0
        matched = int(self._meets(file, checkpoints))
        faults = file.fault_rows()
        for chunk in file.chunks(CHUNK):
            chunk = chunk[: int(min(len(chunk), end - self.step))]
            if not len(chunk) or self.failure is not None:
                break
            self._compare(file, chunk, faults)
            matched += self._chain(file, chunk, checkpoints)
        if self.failure is None and math.isfinite(end) and self.step < end:
            torn = f"cut off after {file.torn_bytes} bytes" if file.torn_bytes else "missing"
            self.fail(file, self.step, "record", torn, "a step")
        return matched

    def _compare(self, file: AttemptFile, chunk: Records, faults: npt.NDArray[Any]) -> None:
        """Find the first record of a chunk that is not as planned."""
        indices = range(self.step, min(self.step + len(chunk), self._plan.num_steps))
        if len(chunk) > len(indices):
            self.fail(file, self._plan.num_steps, "step", int(chunk["step"][len(indices)]), "the end of the schedule")
            chunk = chunk[: len(indices)]
        if not len(chunk):
            return
        steps = [self._plan.step_at(index) for index in indices]
        planned = {
            "step": [step.index for step in steps],
            "position": [step.first_position for step in steps],
            "clips": [step.shape.clips for step in steps],
            "frames": [step.shape.frames for step in steps],
            "height": [step.shape.height for step in steps],
            "width": [step.shape.width for step in steps],
            "lr": [step.lr for step in steps],
            "phase": [step.phase for step in steps],
            "slot": [step.slot for step in steps],
        }
        found: list[tuple[int, str, object, object]] = []
        for field in _PLANNED:
            recorded, wanted = chunk[field], np.array(planned[field])
            # a cosine may differ in its last digit from one C library to another
            wrong = ~np.isclose(recorded, wanted, rtol=1e-12, atol=0.0) if field == "lr" else recorded != wanted
            if wrong.any():
                first = int(np.argmax(wrong))
                found.append((first, field, recorded[first], wanted[first]))
        low = np.array([self._least_version(step.index) for step in steps])
        wrong = (chunk["version"] < low) | (chunk["version"] > self._state.version)
        if wrong.any():
            first = int(np.argmax(wrong))
            found.append((first, "version", chunk["version"][first], f"{low[first]} to {self._state.version}"))
        clips = np.array(planned["clips"], np.int64)
        firsts = np.cumsum(clips) - clips
        positions = np.arange(int(clips.sum())) + steps[0].first_position
        samples = samples_at(positions, self._plan.num_samples, self._seed)
        own = faults[(faults["step"] >= indices.start) & (faults["step"] < indices.stop)]
        found += self._substitute(own, steps[0].first_position, indices.start, samples)
        checksums = np.add.reduceat(words_of(positions, samples), firsts)
        wrong = chunk["checksum"] != checksums
        if wrong.any():
            first = int(np.argmax(wrong))
            found.append((first, "checksum", chunk["checksum"][first], checksums[first]))
        counts = np.minimum(np.bincount(own["step"] - indices.start, minlength=len(steps)), 65535)
        wrong = chunk["substituted"] != counts
        if wrong.any():
            first = int(np.argmax(wrong))
            found.append((first, "substituted", chunk["substituted"][first], counts[first]))
        self.substituted += len(np.unique(own["position"]))
        if found:
            place, name, *values = min(found, key=lambda item: item[0])
            self.fail(file, indices.start + place, name, *values)

    def _least_version(self, step: int) -> int:
        """The amendments that a step has to have taken up."""
        versions = [number for number, amendment in enumerate(self._state.amendments, 1) if amendment.from_step <= step]
        return max(versions, default=0)

    def _substitute(
        self, faults: npt.NDArray[Any], first_position: int, first_step: int, samples: npt.NDArray[np.int64]
    ) -> list[tuple[int, str, object, object]]:
        """Put the substitutes of broken videos into `samples`, and find those that are not the ones that the seed gives."""
        found: list[tuple[int, str, object, object]] = []
        for position, group in itertools.groupby(faults.tolist(), key=lambda row: int(row[1])):
            rows = list(group)
            place = position - first_position
            if not 0 <= place < len(samples):
                continue
            planned = int(samples[place])
            probes = (
                substitute_at(position, probe, self._plan.num_samples, self._seed)
                for probe in range(self._plan.num_samples)
            )
            tried = [planned, *itertools.islice((sample for sample in probes if sample != planned), len(rows))]
            broken, substitute = [int(row[2]) for row in rows], int(rows[-1][3])
            if [*broken, substitute] != tried or not set(broken) <= self._quarantined:
                found.append((int(rows[0][0]) - first_step, "substitute", [*broken, substitute], tried))
            samples[place] = substitute
        return found

    def _chain(self, file: AttemptFile, chunk: Records, checkpoints: Mapping[int, int]) -> int:
        """Follow the digests of a chunk as far as it is as planned."""
        matched = 0
        for record in chunk:
            if self.failure is not None and self.failure.step <= self.step:
                break
            digest = chained(self._digest, body_of(record))
            if digest != int(record["digest"]):
                self.fail(file, self.step, "digest", f"{int(record['digest']):016x}", f"{digest:016x}")
                break
            self._digest = digest
            self.step += 1
            self.position = int(record["position"]) + int(record["clips"])
            matched += self._meets(file, checkpoints)
        return matched

    def _meets(self, file: AttemptFile, checkpoints: Mapping[int, int]) -> bool:
        """Whether there is a checkpoint here, with the right digest."""
        digest = checkpoints.get(self.step)
        if digest is not None and digest != self._digest:
            self.fail(file, self.step, "checkpoint's digest", f"{digest:016x}", f"{self._digest:016x}")
        return digest == self._digest


@dataclass(frozen=True, slots=True)
class _Metrics:
    quarantined: frozenset[int]
    is_finished: bool


def _read_metrics(path: Path) -> _Metrics:
    """The training videos that were found broken, and whether the last attempt came to its end."""
    quarantined, is_finished = set(), False
    if (path / "metrics.jsonl").is_file():
        with (path / "metrics.jsonl").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if '"kind": "step"' in line or '"kind": "eval"' in line:
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill
                if record.get("kind") == "quarantine" and record.get("split") == "train":
                    quarantined.add(int(record["sample"]))
                if record.get("event") in ("start", "resume", "finish"):
                    is_finished = record["event"] == "finish"
    return _Metrics(frozenset(quarantined), is_finished)


def _planned(path: Path) -> tuple[Run, Plan, ScheduleState]:
    """The run's configuration, its plan with all amendments, and those."""
    try:
        run = Run.from_json(json.loads((path / "run.json").read_text()))
        num_samples = int(json.loads((path / "data.json").read_text())["num_train"])
        base = Plan.compile(run.plan, num_samples)
        state = ScheduleState(base.digest())
        trees = [json.loads((path / "schedule.json").read_text())] if (path / "schedule.json").is_file() else []
        trees += [tree["schedule"] for tree in _metas(path)]
        for tree in trees:
            state = state.newer(ScheduleState.from_json(tree))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{Path(error.filename).name}: {error.strerror}" if isinstance(error, OSError) else error
        raise DataError(
            "RUN", str(path), f"is no run's folder ({' '.join(str(why).split())})", "give the folder that training wrote, e.g. runs/demo"
        ) from None  # fmt: skip
    except MgrayError as error:
        raise DataError(
            "RUN", str(path), f"does not belong together ({error})", "give the folder that training wrote"
        ) from None
    return run, state.plan(base), state


def _metas(path: Path) -> Iterable[dict[str, Any]]:
    """The descriptions of the checkpoints that the run has kept."""
    for meta in sorted(path.glob("*/meta.json")):
        try:
            tree = json.loads(meta.read_text())
        except ValueError:
            continue  # cut off by a kill: training passes it over
        if isinstance(tree, dict) and ".part" not in meta.parent.name and "schedule" in tree:
            yield tree


def _checkpoints(path: Path) -> dict[tuple[int, int], int]:
    """Digests by attempt and step."""
    return {(int(t["attempt"]), int(t["step"])): int(t["ledger"], 16) for t in _metas(path) if t.get("ledger")}


def _files(path: Path) -> list[AttemptFile]:
    files = [AttemptFile.read(file) for file in sorted((path / FOLDER).glob("[0-9]*.bin"))]
    whole = [file for file in files if file is not None]
    if not whole:
        raise DataError(
            "RUN", str(path), f"has no {FOLDER} folder with a ledger", "give a run of this version of mgray"
        )
    return whole


def _kept_ends(starts: Sequence[int]) -> list[float]:
    """For each attempt the step from which later ones went on."""
    ends: list[float] = []
    end = math.inf
    for start in reversed(starts):
        ends.append(end)
        end = min(end, start)
    return ends[::-1]
