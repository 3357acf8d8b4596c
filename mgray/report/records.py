"""What training wrote into a run's folder, read as typed values; a run that is still in progress can be read too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mgray.config import Run
from mgray.errors import CheckpointError, ConfigError, DataError
from mgray.plan import Plan
from mgray.plan.state import ScheduleState

IntColumn: TypeAlias = npt.NDArray[np.int64]
FloatColumn: TypeAlias = npt.NDArray[np.float64]

LINE_START = '{"kind"'
"""How each line of metrics.jsonl begins; a writer that was killed leaves a fragment before the next one's first line."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepRecords:
    """The steps that count, in ascending order: one column a quantity, one entry a step."""

    attempt: IntColumn
    step: IntColumn
    phase: IntColumn
    slot: IntColumn
    clips: IntColumn
    frames: IntColumn
    crop: IntColumn
    lr: FloatColumn
    epoch: FloatColumn
    loss: FloatColumn
    top1: FloatColumn
    step_s: FloatColumn
    wait_s: FloatColumn
    train_s: FloatColumn
    """Training seconds from the start of the run to the end of the step."""
    time: FloatColumn
    """Unix seconds."""

    def __len__(self) -> int:
        return len(self.step)

    @property
    def voxels(self) -> FloatColumn:
        """Clips x frames x height x width of each step."""
        return (self.clips * self.frames).astype(np.float64) * self.crop.astype(np.float64) ** 2

    @property
    def duration_s(self) -> FloatColumn:
        """Training seconds of each step, data wait included."""
        return np.diff(self.train_s, prepend=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRecord:
    """One validation, after `step` steps; `score` is a fraction: top-1, or mAP where videos have several classes."""

    attempt: int
    step: int
    epoch: float
    score: float
    loss: float
    num_clips: int
    eval_s: float
    train_s: float
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRecord:
    """Something that happened to the run; `event` is start, resume, phase, checkpoint, finish or a later addition."""

    attempt: int
    step: int
    event: str
    detail: str
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRecord:
    """A video that could not be read or decoded while the run trained, when that was first seen."""

    attempt: int
    step: int
    split: str
    sample: int
    path: str
    reason: str
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """How busy rank 0's node and GPU were, each 0 to 1; NaN where it is not known."""

    attempt: int
    step: int
    cpu: float
    gpu: float
    gpu_gib: float
    """GPU memory that torch held, GiB."""
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRecord:
    """What the last validation found of each class."""

    step: int
    confusion: tuple[tuple[int, int, int], ...]
    """Class, predicted class and videos, none of 0 videos; empty where videos have several classes."""
    support: tuple[int, ...]
    """Videos of each class, where they have several; empty where they have one."""
    average_precision: tuple[float, ...]
    """Of each class, likewise; NaN where no video is of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecord:
    """The dataset that the run was trained on."""

    classes: tuple[str, ...]
    num_train: int
    num_val: int
    digest: str
    multi_label: bool = False
    broken: tuple[tuple[str, str], ...] = ()
    """Path and reason of the videos that ingest left out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunRecords:
    """Everything that a run's folder says about it."""

    name: str
    path: Path
    run: Run
    plan: Mapping[str, Any]
    """`Plan.to_json()` of the plan with all amendments: digest, num_samples, phases, totals."""
    schedule: ScheduleState | None
    """The amendments; None where there are none."""
    data: DataRecord | None
    steps: StepRecords
    evals: tuple[EvalRecord, ...]
    events: tuple[EventRecord, ...]
    """Of all attempts, in the order in which they were written."""
    quarantined: tuple[QuarantineRecord, ...]
    """Broken videos that were met in training or validation, of all attempts, each once."""
    samples: tuple[SampleRecord, ...]
    """Of all attempts."""
    classes: ClassRecord | None
    """None before the first validation, and of runs that did not record it."""
    num_repeated: int
    """Steps that were trained again because their first result was lost with a worker."""
    lost: Mapping[int, int]
    """The same by the attempt that trained them again, those with none left out."""
    num_unreadable: int
    """Lines of metrics.jsonl that could not be read, apart from the one in progress."""

    @property
    def is_finished(self) -> bool:
        """True when the last attempt came to its end."""
        marks = [event.event for event in self.events if event.event in ("start", "resume", "finish")]
        return bool(marks) and marks[-1] == "finish"

    @property
    def metric(self) -> str:
        """What validations are scored by: "top-1", or "mAP" where videos have several classes."""
        return "mAP" if self.data is not None and self.data.multi_label else "top-1"

    @property
    def best_score(self) -> float | None:
        """Best validation score; None before the first validation."""
        return max((record.score for record in self.evals), default=None)

    def seconds_to(self, score: float) -> float | None:
        """Training seconds at the first validation with this score or more; None where none has it."""
        return next((record.train_s for record in self.evals if record.score >= score), None)


Kind: TypeAlias = Literal["step", "eval", "event", "quarantine", "sample"]
Value: TypeAlias = int | float | str
FIELDS: Mapping[Kind, Mapping[str, str]] = {
    "step": {field.name: str(field.type) for field in dataclasses.fields(StepRecords)},
    "eval": {field.name: str(field.type) for field in dataclasses.fields(EvalRecord)},
    "event": {field.name: str(field.type) for field in dataclasses.fields(EventRecord)},
    "quarantine": {field.name: str(field.type) for field in dataclasses.fields(QuarantineRecord)},
    "sample": {field.name: str(field.type) for field in dataclasses.fields(SampleRecord)},
}
READERS = {"IntColumn": int, "FloatColumn": float, "int": int, "float": float, "str": str}


def read_run(path: Path | str) -> RunRecords:
    """Read the folder of a run (`storage`/`name`), finished or in progress.

    Where a run was resumed, the steps and validations of an earlier attempt count up to the step from which a later
    attempt went on.

    Raises:
        DataError: no such folder, no run's folder, or a file that cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise _error(path, "no such folder", "give the folder of a run (its storage and name, e.g. runs/demo)")
    try:
        run = Run.from_json(_read_tree(path, "run.json"))
    except ConfigError as error:
        raise _error(
            path, f"run.json is of another version ({error})", "read it with the mgray that wrote it"
        ) from None
    plan = _read_tree(path, "plan.json")
    if not plan.keys() >= {"num_samples", "phases", "totals"}:
        raise _error(path, "plan.json is no plan", "read it with the mgray that wrote it")
    schedule = _read_schedule(path)
    if schedule is not None:  # plan.json may be of the moment before the amendments were written
        base = Plan.compile(run.plan, int(plan["num_samples"]))
        if schedule.plan_digest != base.digest():
            raise _error(
                path, "schedule.json is of another plan than run.json", "name a run's folder as training left it"
            )
        plan = schedule.plan(base).to_json()
    lines, num_unreadable = _read_lines(path)
    steps, evals, num_repeated, lost = _supersede(lines)
    return RunRecords(
        name=run.name,
        path=path,
        run=run,
        plan=plan,
        schedule=schedule,
        data=_read_data(path),
        steps=_columns(steps),
        evals=tuple(EvalRecord(**line) for line in evals),
        events=tuple(EventRecord(**line) for line in lines["event"]),
        quarantined=_quarantined(lines["quarantine"]),
        samples=tuple(SampleRecord(**line) for line in lines["sample"]),
        classes=_read_classes(path),
        num_repeated=num_repeated,
        lost=lost,
        num_unreadable=num_unreadable,
    )


def _error(path: Path, problem: str, remedy: str) -> DataError:
    return DataError("run", str(path), problem, remedy)


def _read_tree(path: Path, name: str) -> dict[str, Any]:
    try:
        tree = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _error(path, f"is no run's folder (it has no {name})", "give the folder that training wrote") from None
    except (OSError, ValueError) as error:
        raise _error(path, f"{name} cannot be read ({error})", "give the folder that training wrote") from None
    if not isinstance(tree, dict):
        raise _error(path, f"{name} holds no mapping", "give the folder that training wrote")
    return tree


def _read_schedule(path: Path) -> ScheduleState | None:
    if not (path / "schedule.json").is_file():
        return None
    try:
        state = ScheduleState.from_json(_read_tree(path, "schedule.json"))
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise _error(path, f"schedule.json cannot be read ({error})", "read it with the mgray that wrote it") from None
    return state if state.version else None


def _read_classes(path: Path) -> ClassRecord | None:
    if not (path / "validation.json").is_file():
        return None
    tree = _read_tree(path, "validation.json")
    try:
        return ClassRecord(
            step=int(tree["step"]),
            confusion=tuple((int(i), int(j), int(count)) for i, j, count in tree.get("confusion", ())),
            support=tuple(int(count) for count in tree.get("support", ())),
            average_precision=tuple(
                float("nan") if value is None else float(value) for value in tree.get("average_precision", ())
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _error(path, f"validation.json lacks a value ({error})", "read it with the mgray that wrote it") from None


def _read_data(path: Path) -> DataRecord | None:
    if not (path / "data.json").is_file():
        return None
    tree = _read_tree(path, "data.json")
    try:
        return DataRecord(
            classes=tuple(str(name) for name in tree["classes"]),
            num_train=int(tree["num_train"]),
            num_val=int(tree["num_val"]),
            digest=str(tree["digest"]),
            multi_label=bool(tree.get("multi_label", False)),
            broken=tuple((str(path), str(reason)) for path, reason in tree.get("broken", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _error(path, f"data.json lacks a value ({error})", "read it with the mgray that wrote it") from None


def _read_lines(path: Path) -> tuple[dict[Kind, list[dict[str, Any]]], int]:
    """The lines of metrics.jsonl by kind, and how many could not be read; a torn last line is not counted."""
    lines: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in FIELDS}
    try:
        text = (path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return lines, 0
    except OSError as error:
        raise _error(path, f"metrics.jsonl cannot be read ({error})", "check the folder's permissions") from None
    failures: list[str] = []
    *whole, last = text.split("\n")
    for line in whole:
        start = max(0, line.rfind(LINE_START))
        if start:
            failures.append("a torn line")
        if not line.strip():
            continue
        try:
            kind, values = _parse_line(line[start:])
        except (KeyError, TypeError, ValueError) as error:
            failures.append(repr(error))
            continue
        lines[kind].append(values)
    if failures and not any(lines.values()):
        raise _error(path, f"metrics.jsonl holds no record ({failures[0]})", "read it with the mgray that wrote it")
    if last.strip():
        try:
            kind, values = _parse_line(last)
        except (KeyError, TypeError, ValueError):
            return lines, len(failures)
        lines[kind].append(values)
    return lines, len(failures)


def _parse_line(line: str) -> tuple[Kind, dict[str, Any]]:
    tree = json.loads(line)
    kind: Kind = tree["kind"]
    if kind == "eval":
        tree["score"] = tree["map"] if "map" in tree else tree["top1"]
    return kind, {name: _value(READERS[reader], tree[name]) for name, reader in FIELDS[kind].items()}


def _value(reader: type[int] | type[float] | type[str], value: Any) -> Value:
    """The value as the field's type; a number that was not measured (null) is NaN."""
    return float("nan") if value is None and reader is float else reader(value)


def _supersede(
    lines: Mapping[Kind, list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int, dict[int, int]]:
    """Steps and validations that count, in order, how many steps were trained more than once, and in which attempts again."""
    starts: dict[int, int] = {}
    for event in lines["event"]:
        if event["event"] in ("start", "resume"):
            starts[event["attempt"]] = event["step"]
    first_steps: dict[int, int] = {}
    reached: dict[int, int] = {}
    for step in lines["step"]:
        attempt = step["attempt"]
        first_steps[attempt] = min(step["step"], first_steps.get(attempt, step["step"]))
        reached[attempt] = max(step["step"] + 1, reached.get(attempt, 0))
    starts |= first_steps
    lost: dict[int, int] = {}
    frontier = 0
    for attempt in sorted(starts):
        if frontier > starts[attempt]:
            lost[attempt] = frontier - starts[attempt]
        frontier = reached.get(attempt, starts[attempt])
    ends: dict[int, float] = {}
    end = float("inf")
    for attempt in sorted(starts, reverse=True):
        ends[attempt] = end
        end = min(end, starts[attempt])
    steps = _last(line for line in lines["step"] if line["step"] < ends[line["attempt"]])
    evals = _last(line for line in lines["eval"] if line["step"] <= ends.get(line["attempt"], float("inf")))
    return steps, evals, len(lines["step"]) - len(steps), lost


def _quarantined(lines: Iterable[dict[str, Any]]) -> tuple[QuarantineRecord, ...]:
    firsts: dict[tuple[str, int], QuarantineRecord] = {}
    for line in lines:
        firsts.setdefault((line["split"], line["sample"]), QuarantineRecord(**line))
    return tuple(firsts.values())


def _last(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each step the line of the highest attempt, the last one written where there are several; in order."""
    kept = {line["step"]: line for line in sorted(lines, key=lambda line: int(line["attempt"]))}
    return [kept[step] for step in sorted(kept)]


def _columns(lines: list[dict[str, Any]]) -> StepRecords:
    types = {"IntColumn": np.int64, "FloatColumn": np.float64}
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.array([line[name] for line in lines], dtype=types[kind]) for name, kind in FIELDS["step"].items()
    }
    return StepRecords(**columns)
