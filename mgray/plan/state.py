"""The schedule as it stands: the compiled plan and the amendments that were made to it while the run went on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from mgray.errors import CheckpointError, ConfigError
from mgray.plan.plan import Plan

AmendmentKind = Literal["stop"]


@dataclass(frozen=True, slots=True)
class Amendment:
    """A change of the schedule that holds from a named step on, on all workers at once."""

    kind: AmendmentKind
    """stop: `from_step` is not trained any more, the run ends before it."""
    from_step: int


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """An append-only log over a plan; its version is its length, so that of two states the longer one is newer."""

    plan_digest: str
    amendments: tuple[Amendment, ...] = ()

    @property
    def version(self) -> int:
        return len(self.amendments)

    def end_step(self, plan: Plan) -> int:
        """The number of steps that the run takes, amendments included."""
        return min([plan.num_steps, *(a.from_step for a in self.amendments if a.kind == "stop")])

    def amended(self, amendment: Amendment, not_before: int) -> ScheduleState:
        """This state with one more amendment.

        Raises:
            ConfigError: it names a step before `not_before`, which some worker may have trained already.
        """
        if amendment.from_step < not_before:
            raise ConfigError(
                "from_step", amendment.from_step, f"is before step {not_before}, the next phase boundary",
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
        return {"plan": self.plan_digest, "amendments": [[a.kind, a.from_step] for a in self.amendments]}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> ScheduleState:
        """The state of a tree that `to_json` wrote.

        Raises:
            CheckpointError: an amendment of a kind that this code does not know.
        """
        for kind, _ in tree["amendments"]:
            if kind not in get_args(AmendmentKind):
                raise CheckpointError("amendment", kind, "is not known", "go on with the mgray that wrote it")
        return cls(tree["plan"], tuple(Amendment(kind, step) for kind, step in tree["amendments"]))


def segments_of(plan: Plan, start: int, end: int) -> list[range]:
    """The steps from `start` to `end`, cut where a phase begins."""
    pieces = (range(max(start, p.first_step), min(end, p.first_step + p.num_steps)) for p in plan.phases)
    return [piece for piece in pieces if piece]
