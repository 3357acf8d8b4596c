"""The schedule as it stands: the amendments that were made to a plan while its run went on, and what workers are asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from mgray.errors import CheckpointError, ConfigError
from mgray.plan import amend
from mgray.plan.plan import Plan

AmendmentKind = Literal["stop", "advance", "extend", "rate", "workers"]
RequestKind = Literal["advance", "extend", "rate", "checkpoint", "stop", "resize"]


@dataclass(frozen=True, slots=True)
class Amendment:
    """A change of the schedule that holds from a named step on, on all workers at once."""

    kind: AmendmentKind
    """stop: `from_step` is not trained any more, the run ends before it.
    advance: the phase that holds `from_step` ends before it; `value` is the share of the saved voxels that goes to the later phases.
    extend: the phase that holds `from_step` takes `value` epochs longer.
    rate: the learning rate is `value` times what it was.
    workers: batches and rates are those of `value` workers (plan.batch_policy = per_worker)."""
    from_step: int
    value: float = 0.0
    key: str = ""
    """Of the request that it answers, so that a request is not answered twice."""

    def applied(self, plan: Plan, workers: int) -> Plan:
        """The plan with this amendment; `workers` is the number of workers that it was for."""
        step = self.from_step
        if step >= plan.num_steps and self.kind != "stop":
            return plan
        if self.kind == "advance":
            return amend.advanced(plan, step, self.value)
        if self.kind == "extend":
            return amend.extended(plan, step, self.value)
        if self.kind == "rate":
            return amend.rerated(plan, step, self.value)
        if self.kind == "workers":
            return amend.rescaled(plan, step, workers, int(self.value))
        return amend.stopped(plan, step)


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """An append-only log over a plan; its version is its length, so that of two states the longer one is newer."""

    plan_digest: str
    amendments: tuple[Amendment, ...] = ()

    @property
    def version(self) -> int:
        return len(self.amendments)

    @property
    def workers(self) -> int:
        """The number of workers that batches are for, where they follow it."""
        return next((int(a.value) for a in reversed(self.amendments) if a.kind == "workers"), 1)

    def plan(self, base: Plan) -> Plan:
        """The base plan with all amendments, in the order in which they were made."""
        plan, workers = base, 1
        for amendment in self.amendments:
            plan = amendment.applied(plan, workers)
            workers = int(amendment.value) if amendment.kind == "workers" else workers
        return plan

    def amended(self, amendment: Amendment, not_before: int = 0) -> ScheduleState:
        """This state with one more amendment.

        Raises:
            ConfigError: it names a step before `not_before`, which some worker may have trained already.
        """
        if amendment.from_step < not_before:
            raise ConfigError(
                "from_step", amendment.from_step, f"is before step {not_before}, which is trained next",
                f"name step {not_before} or a later one",
            )  # fmt: skip
        return ScheduleState(self.plan_digest, (*self.amendments, amendment))

    def newer(self, other: ScheduleState) -> ScheduleState:
        """The longer of two logs of the same plan.

        Raises:
            CheckpointError: the logs belong to different plans, or neither continues the other.
        """
        if other.plan_digest != self.plan_digest:
            raise CheckpointError(
                "plan", other.plan_digest[:12], f"is not the plan of this run ({self.plan_digest[:12]})",
                "give the run another --name, or the settings that it was started with",
            )  # fmt: skip
        older, newer = sorted((self, other), key=lambda state: state.version)
        if newer.amendments[: older.version] != older.amendments:
            raise CheckpointError(
                "schedule", newer.to_json()["amendments"], f"does not continue {older.to_json()['amendments']}",
                "give the run another --name",
            )  # fmt: skip
        return newer

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values; `ScheduleState.from_json` reads it."""
        return {
            "plan": self.plan_digest,
            "amendments": [[a.kind, a.from_step, a.value, a.key] for a in self.amendments],
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> ScheduleState:
        """The state of a tree that `to_json` wrote.

        Raises:
            CheckpointError: an amendment of a kind that this code does not know.
        """
        for kind, *_ in tree["amendments"]:
            if kind not in get_args(AmendmentKind):
                raise CheckpointError("amendment", kind, "is not known", "go on with the mgray that wrote it")
        return cls(tree["plan"], tuple(Amendment(*fields) for fields in tree["amendments"]))


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody outside asks of a run that is in progress; `from_step` 0 is as soon as can be."""

    key: str
    kind: RequestKind
    value: float = 0.0
    from_step: int = 0

    def check(self, plan: Plan, state: ScheduleState, next_step: int) -> None:
        """Refuse what cannot be done to this plan.

        Raises:
            ConfigError: it names the value and what may be asked.
        """
        plan = state.plan(plan)
        step = max(self.from_step, next_step)
        if self.from_step and self.from_step < next_step:
            raise ConfigError(
                "from_step", self.from_step, f"is before step {next_step}, which is trained next",
                f"name step {next_step} or a later one",
            )  # fmt: skip
        if step >= plan.num_steps:
            raise ConfigError("from_step", step, f"is past the run's {plan.num_steps} steps", "name an earlier step")
        if self.kind == "advance" and plan.phase_of(step).index == len(plan.phases) - 1:
            raise ConfigError(
                "advance", step, "is in the last phase, there is none to advance to", "stop the run, or let it end"
            )  # fmt: skip
        if self.kind in ("extend", "rate") and not 0 < self.value < float("inf"):
            raise ConfigError(self.kind, self.value, "must be positive", "give a number above 0")
        if self.kind == "resize" and (self.value < 0 or self.value != int(self.value)):
            raise ConfigError(
                "resize", self.value, "is no number of workers", "give a whole number, or 0 to go back to scale.workers"
            )


@dataclass(frozen=True, slots=True)
class Departure:
    """Workers save before `step` and end their attempt: somebody asked to stop or for a resize, or nodes have been given notice."""

    step: int
    why: Literal["stop", "resize", "notice"]
    workers: int = 0
    """Asked for by a resize; 0 is what the configuration says."""
    nodes: tuple[str, ...] = ()
    """That are about to go."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the driver tells the workers: the newest schedule, a step before which to save, and departures at different steps."""

    state: ScheduleState
    save_at: int | None = None
    departures: tuple[Departure, ...] = ()


def segments_of(plan: Plan, start: int, end: int) -> list[range]:
    """The steps from `start` to `end`, cut where a phase begins."""
    pieces = (range(max(start, p.first_step), min(end, p.first_step + p.num_steps)) for p in plan.phases)
    return [piece for piece in pieces if piece]
