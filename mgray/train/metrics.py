"""Records of a run: one JSON object a line, and TensorBoard; written by rank 0."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mgray.jsonfile import write_json
from mgray.plan import Step
from mgray.train.kept import kept_in
from mgray.train.load import LoadSampler
from mgray.train.track import Sender

METRICS = "metrics.jsonl"
VALIDATION = "validation.json"
SAMPLE_S = 2.0
"""Least seconds between two looks at how busy the machine is."""


class MetricsWriter:
    """Appends to a run's records; a later attempt's lines supersede those of an earlier one at the same step."""

    def __init__(
        self, folder: Path, attempt: int, *, load: LoadSampler | None = None, sender: Sender | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt = attempt
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        if self._file.tell() and not _ends_with_newline(folder / METRICS):
            self._file.write("\n")  # the last writer was killed within a line
        self._folder = folder
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._load, self._sender = load, sender
        self._sampled_at = time.monotonic()
        self._last: tuple[dict[str, float], int] | None = None
        """Of the steps since the last flush, the last one."""
        self._step = 0

    def step(
        self, step: Step, *, loss: float, top1: float, checksum: int, step_s: float, wait_s: float, train_s: float
    ) -> None:
        """One training step: mean loss and share of right answers (the likeliest class is the clip's, or one of its) over the global batch,
        seconds as rank 0 saw them.

        `checksum` is of the clips that were trained on (see `clip_checksum`).
        """
        shape = step.shape
        self._line(
            "step", step.index, phase=step.phase, slot=step.slot, clips=shape.clips, frames=shape.frames, crop=shape.height,
            lr=step.lr, epoch=step.epoch, loss=loss, top1=top1, checksum=checksum, step_s=step_s, wait_s=wait_s, train_s=train_s,
        )  # fmt: skip
        clips_per_s = shape.clips / max(step_s, 1e-9)
        values = {"loss": loss, "top1": top1, "lr": step.lr, "clips_per_s": clips_per_s, "wait_s": wait_s}
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step.index)
        self._last = {f"train/{name}": value for name, value in values.items()}, step.index

    def validation(self, steps: int, *, epoch: float, scores: dict[str, float], eval_s: float, train_s: float) -> None:
        """One validation after `steps` steps."""
        self._line("eval", steps, epoch=epoch, **scores, eval_s=eval_s, train_s=train_s)
        values = {f"val/{name}": scores[name] for name in ("top1", "top5", "map", "loss") if name in scores}
        for name, value in values.items():
            self._board.add_scalar(name, value, steps)
        if self._sender is not None:
            self._sender.log(values, steps)

    def classes(self, steps: int, found: dict[str, Any]) -> None:
        """What the newest validation found of each class, in place of the one before (`validation.json`)."""
        write_json(self._folder / VALIDATION, {"step": steps, **found})

    def event(self, step: int, event: str, detail: str = "") -> None:
        """Something that happened: start, resume, phase, checkpoint, stop, finish."""
        self._line("event", step, event=event, detail=detail)
        self.flush()

    def quarantine(self, step: int, *, split: str, sample: int, path: str, reason: str) -> None:
        """A video that cannot be read or decoded, when that was first seen in this run."""
        self._line("quarantine", step, split=split, sample=sample, path=path, reason=reason)

    def flush(self) -> None:
        """Write what there is; sends the last step to the tracker and looks how busy the machine is, every now and then."""
        now = time.monotonic()
        if self._last is not None:
            values, step = self._last
            if self._load is not None and now - self._sampled_at >= SAMPLE_S:
                self._sampled_at = now
                load = self._load.sample()
                self._line("sample", step, **load)
                known = {f"load/{name}": value for name, value in load.items() if value is not None}
                for name, value in known.items():
                    self._board.add_scalar(name, value, step)
                values |= known
            if self._sender is not None:
                self._sender.log(values, step)
            self._last = None
        if self._sender is not None and self._sender.failure:
            failure, self._sender = self._sender.failure, None
            self._line("event", self._step, event="track", detail=f"left out ({failure})")
        self._file.flush()

    def close(self) -> None:
        self.flush()
        if self._sender is not None:
            self._sender.close()
            self.flush()
        self._file.close()
        self._board.close()

    def _line(self, kind: str, step: int, **values: Any) -> None:
        self._step = step
        record = {"kind": kind, "attempt": self._attempt, "step": step, **values, "time": time.time()}
        self._file.write(json.dumps(record) + "\n")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _records(folder: Path, *signs: str) -> Iterator[dict[str, Any]]:
    """The whole records of a run whose lines hold one of some pieces of text, oldest first; what a kill has cut off is passed over."""
    path = folder / METRICS
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if any(sign in line for sign in signs):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def losses_of(folder: Path, steps: range) -> list[float]:
    """Recorded losses of some consecutive steps, as they were last trained; those that are missing end the list."""
    records = _records(folder, '"kind": "step"')
    found = {record["step"]: float(record["loss"]) for record in records if record["step"] in steps}
    return [found[step] for step in itertools.takewhile(found.__contains__, steps)]


def next_attempt(folder: Path) -> int:
    """Number of the attempt that begins now: one above the highest in the records and the checkpoints."""
    recorded = (int(record["attempt"]) for record in _records(folder, '"start"', '"resume"') if "attempt" in record)
    return max(itertools.chain(recorded, (item.attempt for item in kept_in(folder))), default=-1) + 1


def quarantined(folder: Path) -> dict[tuple[str, int], str]:
    """The broken videos that the attempts of a run have recorded: {(split, sample): reason}."""
    found: dict[tuple[str, int], str] = {}
    for record in _records(folder, '"kind": "quarantine"'):
        try:
            found.setdefault((str(record["split"]), int(record["sample"])), str(record["reason"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
