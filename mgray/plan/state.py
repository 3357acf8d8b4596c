"""The schedule as it stands: the amendments that were made to a plan while its run went on, and what workers are asked to do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mgray.errors import CheckpointError, ConfigError, MgrayError
from mgray.plan import amend
from mgray.plan.plan import Plan

AmendmentKind = Literal["stop", "advance", "extend", "rate", "workers"]
RequestKind = Literal["advance", "extend", "rate", "checkpoint", "stop", "resize"]
MOST_RATE, MOST_EPOCHS = 1e3, 1e4
"""What one request may ask for: a factor on the learning rate, or epochs more of a phase."""


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
    """Of the request that it answers, so that a request is not answered twice; empty where nobody asked."""

    @property
    def is_adaptive(self) -> bool:
        """Whether it ends a phase because its loss was flat."""
        return self.kind == "advance" and not self.key

    def outdates(self, other: Amendment) -> bool:
        """Whether this one, which was made later, takes the place of `other`.

        Workers who go on from a step make void what was found out in the steps after it that were lost: the workers then, and flat losses.
        """
        if self.kind != "workers":
            return False
        if other.kind == "workers":
            return other.from_step >= self.from_step
        return other.is_adaptive and other.from_step > self.from_step

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
            return plan if workers == self.value else amend.rescaled(plan, step, workers, int(self.value))
        return amend.stopped(plan, step)


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """An append-only log over a plan; its version is its length, so that of two states the longer one is newer."""

    plan_digest: str
    amendments: tuple[Amendment, ...] = ()
    by_step: bool = True
    """Amendments are applied in the order of their steps. False is an earlier mgray's log, whose order is that of its requests and another."""

    @property
    def version(self) -> int:
        return len(self.amendments)

    def standing(self) -> tuple[Amendment, ...]:
        """The amendments that are not outdated, in the order in which they take effect."""
        if not self.by_step:
            return self.amendments
        standing: list[Amendment] = []
        for amendment in self.amendments:
            standing = [*(other for other in standing if not amendment.outdates(other)), amendment]
        return tuple(sorted(standing, key=lambda amendment: amendment.from_step))

    def before(self, step: int) -> ScheduleState:
        """What had taken effect before a step: the same when the step is trained first and when it is trained again."""
        return dataclasses.replace(self, amendments=tuple(a for a in self.amendments if a.from_step < step))

    def is_for(self, workers: int, step: int) -> bool:
        """Whether batches from `step` on are for so many workers, where they follow them."""
        changes = [a for a in self.standing() if a.kind == "workers"]
        now = next((a.value for a in reversed(changes) if a.from_step <= step), 1)
        return {now, *(a.value for a in changes if a.from_step > step)} == {workers}

    def plan(self, base: Plan) -> Plan:
        """The base plan with all amendments, each applied to what those that take effect before it have made."""
        plan, workers = base, 1
        for amendment in self.standing():
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
        return dataclasses.replace(self, amendments=(*self.amendments, amendment))

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
        tree = {
            "plan": self.plan_digest,
            "amendments": [[a.kind, a.from_step, a.value, a.key] for a in self.amendments],
        }
        return tree | ({"order": "step"} if self.by_step else {})

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> ScheduleState:
        """The state of a tree that `to_json` wrote.

        Raises:
            CheckpointError: an amendment of a kind that this code does not know.
        """
        for kind, *_ in tree["amendments"]:
            if kind not in get_args(AmendmentKind):
                raise CheckpointError("amendment", kind, "is not known", "go on with the mgray that wrote it")
        amendments = tuple(Amendment(*fields) for fields in tree["amendments"])
        steps = [amendment.from_step for amendment in amendments]
        return cls(tree["plan"], amendments, by_step=tree.get("order") == "step" or steps == sorted(steps))


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody outside asks of a run that is in progress; `from_step` 0 is as soon as can be."""

    key: str
    kind: RequestKind
    value: float = 0.0
    from_step: int = 0

    def check_values(self) -> None:
        """Refuse what no run can do.

        Raises:
            ConfigError: it names the value and what may be asked.
        """
        if self.from_step < 0:
            raise ConfigError("at_step", self.from_step, "must not be negative", "name a step, or leave it out")
        if self.kind == "advance" and not 0 <= self.value <= 1:
            raise ConfigError("advance", self.value, "is no share", "give a number from 0 to 1, or none")
        if self.kind == "rate" and not 0 < self.value <= MOST_RATE:
            raise ConfigError("rate", self.value, "is no factor", f"give a number above 0, at most {MOST_RATE:g}")
        if self.kind == "extend" and not 0 < self.value <= MOST_EPOCHS:
            raise ConfigError("extend", self.value, "are no epochs", f"give a number above 0, at most {MOST_EPOCHS:g}")
        if self.kind == "resize" and not (0 <= self.value < math.inf and self.value == int(self.value)):
            raise ConfigError(
                "resize", self.value, "is no number of workers", "give a whole number, or 0 to go back to scale.workers"
            )

    def check(self, base: Plan, state: ScheduleState, next_step: int) -> None:
        """Refuse what cannot be done to this plan.

        Raises:
            ConfigError: it names the value and what may be asked.
        """
        self.check_values()
        plan = state.plan(base)
        step = max(self.from_step, next_step)
        if self.from_step and self.from_step < next_step:
            raise ConfigError(
                "from_step", self.from_step, f"is before step {next_step}, which is trained next",
                f"name step {next_step} or a later one",
            )  # fmt: skip
        if step >= plan.num_steps:
            raise ConfigError("from_step", step, f"is past the run's {plan.num_steps} steps", "name an earlier step")
        here = state.before(step + 1).plan(base)
        if self.kind == "advance" and here.phase_of(step).index == len(here.phases) - 1:
            raise ConfigError(
                "advance", step, "is in the last phase, there is none to advance to", "stop the run, or let it end"
            )  # fmt: skip
        amendment = self.amendment(step)
        if amendment is not None:
            self._try(base, state.amended(amendment), step)

    def amendment(self, step: int) -> Amendment | None:
        """What it becomes where it is taken up from `step` on; None where it leaves the schedule as it is."""
        if self.kind == "advance" or self.kind == "extend" or self.kind == "rate":
            return Amendment(self.kind, step, self.value, self.key)
        return None

    def _try(self, base: Plan, state: ScheduleState, step: int) -> None:
        """Refuse a schedule that workers could not train on."""
        try:
            plan = state.plan(base)
            plan.step_at(step)
            rates = [rate for phase in plan.phases for rate in (phase.lr, phase.end_lr)]
            plan.to_json()
            problem = "" if all(map(math.isfinite, rates)) else "its learning rate is not finite"
        except (ArithmeticError, LookupError, ValueError, MgrayError) as error:
            problem = " ".join(str(error).split())[:100]
        if problem:
            raise ConfigError(self.kind, self.value, f"makes no schedule ({problem})", "give another value")


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
    """What the driver tells the workers: the newest schedule, the steps before which to save, and departures at different steps."""

    state: ScheduleState
    saves: tuple[int, ...] = ()
    departures: tuple[Departure, ...] = ()


def segments_of(plan: Plan, start: int, end: int) -> list[range]:
    """The steps from `start` to `end`, cut where a phase begins."""
    pieces = (range(max(start, p.first_step), min(end, p.first_step + p.num_steps)) for p in plan.phases)
    return [piece for piece in pieces if piece]
