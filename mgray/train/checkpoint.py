"""Checkpoints: one file of tensors and a small description that is checked before it is trusted."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgray.errors import CheckpointError, ConfigError, DamagedCheckpointError
from mgray.jsonfile import write_json
from mgray.plan import Plan
from mgray.plan.state import ScheduleState
from mgray.train.average import WeightAverage
from mgray.train.optimizer import match_state

FORMAT = 1
META, TENSORS = "meta.json", "state.pt"
SCHEDULE = "schedule.json"
"""Amendments of a run, in its folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMeta:
    """What a checkpoint belongs to and how far it is."""

    step: int
    """Steps done."""
    run_digest: str
    data_digest: str
    schedule: ScheduleState
    classes: tuple[str, ...]
    run: dict[str, Any]
    """The run's configuration, `Run.to_json()`."""
    train_s: float
    """Seconds of training so far (without validation, saving and start-up)."""
    attempt: int
    """Number of the attempt that wrote it; each start of the workers is one."""
    multi_label: bool = False
    """Whether videos have several classes, so that scores are a sigmoid's."""
    validated: bool = True
    """Whether the validation that is due after `step`, if one is, came before it was saved."""
    ledger: str = ""
    """Digest of the run's ledger after `step` records, in hex; empty where the run began without one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of all tensors as they stood at one step, on their device; training may go on while they are written."""

    state: dict[str, Any]
    ready: torch.cuda.Event | None
    """Passed on the device when the copies are made."""

    def on_host(self) -> dict[str, Any]:
        """The copies in main memory, fetched from the device on a stream beside that of training."""
        if self.ready is None:
            return self.state
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(self.ready)
            state = _mapped(self.state, lambda tensor: tensor.to("cpu"))
        assert isinstance(state, dict)
        return state


def snapshot_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None) -> Snapshot:
    """What a checkpoint holds, copied."""
    state: dict[str, Any] = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    if average is not None:
        state["average"] = average.state
    on_device = any(parameter.is_cuda for parameter in model.parameters())
    copied = _mapped(state, lambda tensor: tensor.detach().clone())
    ready = torch.cuda.current_stream().record_event() if on_device else None
    return Snapshot(copied, ready)


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tree of dicts, lists and tuples with each tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, change) for value in tree)
    return tree


def write_checkpoint(folder: Path, meta: CheckpointMeta, snapshot: Snapshot) -> None:
    """Write a checkpoint into an existing folder; the description comes last, so that a cut-off one is noticed."""
    tensors = folder / TENSORS
    torch.save(snapshot.on_host(), tensors)
    content = {
        "format": FORMAT,
        "step": meta.step,
        "run_digest": meta.run_digest,
        "data_digest": meta.data_digest,
        "schedule": meta.schedule.to_json(),
        "classes": list(meta.classes),
        "run": meta.run,
        "train_s": meta.train_s,
        "attempt": meta.attempt,
        "multi_label": meta.multi_label,
        "validated": meta.validated,
        "ledger": meta.ledger,
        "sha256": _digest(tensors),
    }
    (folder / META).write_text(json.dumps(content))


def write_schedule(folder: Path, state: ScheduleState, plan: Plan) -> None:
    """Keep a run's amendments, and the plan that they make, where they outlive its workers and its driver."""
    write_json(folder / SCHEDULE, state.to_json())
    write_json(folder / "plan.json", plan.to_json())


def read_schedule(folder: Path) -> ScheduleState | None:
    """The amendments that a run's workers have taken up, or None where there are none.

    Raises:
        CheckpointError: the file is damaged, or of another version of mgray.
    """
    path = folder / SCHEDULE
    if not path.is_file():
        return None
    try:
        return ScheduleState.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "schedule", str(path), f"is damaged ({error})", "remove it to go on with the checkpoints' schedule"
        ) from None


def schedule_so_far(folder: Path, plan: Plan) -> ScheduleState:
    """What a run's plan has become by the amendments that were taken up, by whichever program trained it then.

    Raises:
        CheckpointError: they cannot be read, or are of another plan.
    """
    afresh = ScheduleState(plan.digest())
    return afresh.newer(read_schedule(folder) or afresh)


def begin_amended(folder: Path, plan: Plan, amendments: ScheduleState) -> ScheduleState:
    """Amendments put into the folder of a run that is to begin with them.

    Raises:
        ConfigError: they are of another plan.
    """
    if amendments.plan_digest != plan.digest():
        raise ConfigError(
            "amendments", len(amendments.amendments), "of the given run are of another schedule or other data",
            "leave --plan.* and --data.* as they are in its file, or remove amendments from it",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_schedule(folder, amendments, amendments.plan(plan))
    return amendments


def read_meta(folder: Path) -> CheckpointMeta:
    """The description of a checkpoint.

    Raises:
        DamagedCheckpointError: `folder` is no checkpoint, or a damaged one.
        CheckpointError: it is one of another version of mgray.
    """
    path = folder / META
    if not path.is_file():
        raise DamagedCheckpointError("checkpoint", str(folder), f"holds no {META}", "name a checkpoint folder of a run")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise CheckpointError(
                "checkpoint", str(folder), f"has format {content['format']}, not {FORMAT}", "use the mgray that wrote it"
            )  # fmt: skip
        meta = CheckpointMeta(
            step=content["step"],
            run_digest=content["run_digest"],
            data_digest=content["data_digest"],
            schedule=ScheduleState.from_json(content["schedule"]),
            classes=tuple(content["classes"]),
            run=content["run"],
            train_s=content["train_s"],
            attempt=content["attempt"],
            multi_label=content.get("multi_label", False),
            validated=content.get("validated", True),
            ledger=content.get("ledger", ""),
        )
        whole = (folder / TENSORS).is_file() and _digest(folder / TENSORS) == content["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if not whole:
        raise DamagedCheckpointError("checkpoint", str(folder), "is damaged or cut off", "use an earlier checkpoint")
    return meta


def read_tensors(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Load a checkpoint in place: to go on with an optimizer and the weights' average, or else the weights to predict with.

    Those are the average where the run kept one.

    Raises:
        CheckpointError: the weights are those of another model.
    """
    state = _tensors(folder)
    try:
        model.load_state_dict(state["model"] if optimizer is not None else state.get("average", state["model"]))
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
            match_state(optimizer)  # the run may have had another train.channels_last
        if average is not None:
            average.load(state["average"])
    except (RuntimeError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())[:200]
        raise CheckpointError(
            "checkpoint", str(folder), f"does not fit the model ({problem})", "give the --model.* settings it was trained with"
        ) from None  # fmt: skip


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint to predict with, by name."""
    state = _tensors(folder)
    weights: dict[str, torch.Tensor] = state.get("average", state["model"])
    return weights


def _tensors(folder: Path) -> dict[str, Any]:
    """What a checkpoint's file of tensors holds; nothing else is read from it, and no code of it is run.

    Raises:
        CheckpointError: it holds more than tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(folder / TENSORS, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "checkpoint", str(folder), "holds more than tensors, and is not read", "use a checkpoint that mgray wrote"
        ) from None
    return state


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` is, or the newest one in the run's folder that `path` is.

    Raises:
        CheckpointError: there is none, or one whose description cannot be read.
    """
    if (path / META).is_file():
        return Path(os.path.abspath(path))  # its parent, which . does not name, is the run's folder
    found = [(_step(meta), str(meta.parent)) for meta in path.glob(f"*/{META}") if ".part" not in meta.parent.name]
    if not found:
        raise CheckpointError(
            "checkpoint", str(path), "holds no checkpoint", "name a run's folder, or one of its checkpoints"
        )
    return Path(os.path.abspath(max(found)[1]))


def _step(meta: Path) -> int:
    try:
        return int(json.loads(meta.read_text())["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(meta, error) from None


def _damaged(meta: Path, error: Exception) -> CheckpointError:
    return DamagedCheckpointError("checkpoint", str(meta), f"is damaged ({error})", "use an earlier checkpoint")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
