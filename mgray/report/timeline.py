"""What happened to a run, in words and in its training time: attempts and their workers, amendments, broken videos."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mgray.report.records import EventRecord, QuarantineRecord, RunRecords

COUNTED = ("phase", "checkpoint", "warm-up")
"""Events that are told as a number, not one by one."""
NEAR = 0.02
"""Broken videos that were met within this share of the training time are one entry."""
WORKERS = re.compile(r"(\d+) workers on (.+)")
AMENDMENT = re.compile(r"(\w+)(?: (\S+))? from step (\d+)")

Kind = Literal["failure", "resize", "notice", "restart", "amendment", "adaptive", "broken", "plain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """The steps that one attempt trained and that count; its times are training seconds."""

    number: int
    workers: int | None
    """None where the records do not say."""
    device: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """One thing that happened; those of kind plain belong in the table, the others also on the time axis."""

    kind: Kind
    number: int
    """From 1 on along the time axis; 0 for the plain."""
    step: int
    train_s: float
    wall_s: float
    """Seconds since the run's first event, pauses included."""
    attempt: int
    text: str


def seconds_at(records: RunRecords, step: int) -> float:
    """Training seconds when `step` was about to be trained, as far as that is known."""
    done = int(np.searchsorted(records.steps.step, step))
    return float(records.steps.train_s[done - 1]) if done else 0.0


def attempts(records: RunRecords) -> tuple[Attempt, ...]:
    """The attempts that begin where the records say, in order; an attempt whose steps were all lost has no length."""
    begun = {event.attempt: event for event in records.events if event.event in ("start", "resume")}
    end_s = float(records.steps.train_s[-1]) if len(records.steps) else 0.0
    found: list[Attempt] = []
    for number in sorted(begun, reverse=True):
        named = WORKERS.fullmatch(begun[number].detail)
        start_s = min(end_s, seconds_at(records, begun[number].step))
        found.append(
            Attempt(
                number=number, workers=int(named[1]) if named else None, device=named[2] if named else "",
                start_s=start_s, end_s=end_s,
            )
        )  # fmt: skip
        end_s = start_s
    return tuple(reversed(found))


def happenings(records: RunRecords) -> tuple[Happening, ...]:
    """Everything but `COUNTED`, in the order of wall time; those on the time axis are numbered."""
    found = sorted([*_events(records), *_broken(records)], key=lambda item: item[0].time)
    start = min((record.time for record, *_ in found), default=0.0)
    times = [seconds_at(records, step) for _, step, *_ in found]
    along = sorted(
        (place for place, (*_, kind, _) in enumerate(found) if kind != "plain"), key=lambda place: times[place]
    )
    numbers = {place: number for number, place in enumerate(along, 1)}
    return tuple(
        Happening(
            kind=kind, number=numbers.get(place, 0), step=step, text=text, attempt=record.attempt,
            train_s=times[place], wall_s=record.time - start,
        )
        for place, (record, step, kind, text) in enumerate(found)
    )  # fmt: skip


Told: TypeAlias = tuple[EventRecord | QuarantineRecord, int, Kind, str]
"""A record, the step that it is about, and its words."""


def _events(records: RunRecords) -> Iterator[Told]:
    before: EventRecord | None = None
    ended: EventRecord | None = None
    for event in records.events:
        if event.event == "start":
            yield event, event.step, "plain", f"Began with {_workers(event.detail)}."
        elif event.event == "resume":
            why, kind = _why(ended)
            lost = records.lost.get(event.attempt, 0)
            again = f"; {lost:,} step{'s were' if lost > 1 else ' was'} trained again" if lost else ""
            changed = before is not None and before.detail != event.detail
            change = f" ({_workers(before.detail)} before)" if before is not None and changed else ""
            yield event, event.step, kind, f"Went on with {_workers(event.detail)}{change} {why}{again}."
        elif event.event == "amend":
            yield _amendment(records, event)
        elif event.event not in COUNTED:
            yield event, event.step, "plain", _plain(event)
        if event.event in ("start", "resume"):
            before, ended = event, None
        elif event.event in ("leave", "finish"):
            ended = event


def _plain(event: EventRecord) -> str:
    if event.event == "finish":
        return f"Ended: {event.detail}." if event.detail else "Ended."
    if event.event == "init":
        return f"Initial weights: {event.detail}"
    if event.event == "leave":
        why, _, nodes = event.detail.partition(": ")
        texts = {
            "resize": "Saved and left, to go on with another number of workers.",
            "stop": "Saved and left: it was asked to stop.",
            "notice": f"Saved and left, since notice was given to node {nodes[:12]}.",
        }
        return texts.get(why, f"Saved and left: {event.detail}.")
    return f"{event.event}: {event.detail}".removesuffix(": ")


def _workers(detail: str) -> str:
    """The words of a start or resume, e.g. `1 worker on cpu`."""
    named = WORKERS.fullmatch(detail)
    return f"{named[1]} worker{'s' if named[1] != '1' else ''} on {named[2]}" if named else detail or "its workers"


def _why(ended: EventRecord | None) -> tuple[str, Kind]:
    """Why the attempt before ended, by its last words."""
    if ended is None:
        return "after a failure", "failure"
    if ended.event == "finish":
        return "after it had ended", "restart"
    why = ended.detail.partition(":")[0]
    if why == "resize":
        return "after a planned resize", "resize"
    if why == "notice":
        return "without the nodes that were about to go", "notice"
    return "after it had been stopped", "restart"


def _amendment(records: RunRecords, event: EventRecord) -> Told:
    named = AMENDMENT.fullmatch(event.detail)
    if named is None:
        return event, event.step, "amendment", f"Schedule amended: {event.detail}."
    kind, value, step = named[1], named[2] or "", int(named[3])
    made = records.schedule.amendments if records.schedule is not None else ()
    keys = [amendment.key for amendment in made if (amendment.kind, amendment.from_step) == (kind, step)]
    if kind == "advance":
        phases = [
            index for index, phase in enumerate(records.plan["phases"])
            if phase["first_step"] <= step - 1 < phase["first_step"] + phase["num_steps"]
        ]  # fmt: skip
        ended = f"{f'Phase {phases[0]}' if phases else 'A phase'} ended before step {step:,}"
        if records.run.plan.adaptive != "off" and not any(keys):
            return event, step, "adaptive", f"{ended}: its loss was flat; what that saved went to the later phases."
        return event, step, "amendment", f"{ended}, as somebody asked."
    texts = {
        "stop": f"Told to end before step {step:,}.",
        "extend": f"The phase of step {step:,} takes {value} epochs longer, as somebody asked.",
        "rate": f"The learning rate is {value} times the planned one from step {step:,} on, as somebody asked.",
        "workers": f"Batches and learning rates are those of {value} workers from step {step:,} on.",
    }
    return event, step, "amendment", texts.get(kind, f"Schedule amended: {event.detail}.")


def _broken(records: RunRecords) -> Iterator[Told]:
    """Broken videos, those met at about the same time together."""
    whole_s = float(records.steps.train_s[-1]) if len(records.steps) else 0.0
    clusters: list[list[QuarantineRecord]] = []
    for found in sorted(records.quarantined, key=lambda found: (found.split, found.step)):
        first = clusters[-1][0] if clusters else None
        if first is not None and first.split == found.split:
            is_near = seconds_at(records, found.step) - seconds_at(records, first.step) <= NEAR * whole_s
        else:
            is_near = False
        if is_near:
            clusters[-1].append(found)
        else:
            clusters.append([found])
    for cluster in clusters:
        done = "replaced by substitutes" if cluster[0].split == "train" else "left out"
        first = cluster[0]
        more = f" and {len(cluster) - 1:,} more" if len(cluster) > 1 else ""
        count = "A broken" if len(cluster) == 1 else f"{len(cluster):,} broken"
        videos = f"{count} {first.split} video{'s' if len(cluster) > 1 else ''}"
        yield first, first.step, "broken", f"{videos}, {done}: {first.path}{more} ({first.reason})."
