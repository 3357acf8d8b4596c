"""The driver of a run: one small actor that owns the schedule's state and shows how far the run is.

It holds nothing that the workers' checkpoints do not: when it dies, Ray starts it anew and the next worker that asks
brings it up to date.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from mgray.errors import ConfigError, TrainingError
from mgray.plan.state import Amendment, ScheduleState

NAMESPACE = "mgray"
FUTILE_ATTEMPTS = 3
"""Attempts that begin at the same step, none getting further, after which the run is given up."""


class ScheduleDriver:
    """Schedule state, versioned and append-only, and the latest progress of one run."""

    def __init__(self, state: ScheduleState) -> None:
        self._state = state
        self._boundary: int | None = None
        self._progress: dict[str, Any] = {}
        self._begun: tuple[int, int] = (-1, 0)
        self._failure: Exception | None = None
        self._given_up = False

    async def sync(self, state: ScheduleState, next_boundary: int) -> ScheduleState:
        """The newest schedule, which may be the asker's; amendments from now on hold from `next_boundary` at the earliest."""
        self._state = self._state.newer(state)
        self._boundary = next_boundary
        return self._state

    async def amend(self, amendment: Amendment) -> ScheduleState:
        """Append an amendment; workers take it up at their next phase boundary.

        Raises:
            ConfigError: it names a step before that boundary, or no worker has said yet (since this actor was started
                or restarted) where the boundary is and which amendments there are.
        """
        if self._boundary is None:
            raise ConfigError(
                "from_step", amendment.from_step, "comes before the workers have said how far they are",
                "try again in a moment",
            )  # fmt: skip
        self._state = self._state.amended(amendment, self._boundary)
        return self._state

    async def begin(self, step: int) -> bool:
        """A worker group starts from `step`; False where going on is pointless and it should return at once."""
        last, times = self._begun
        self._begun = (step, times + 1 if step == last else 1)
        if step != last and not self._given_up:
            self._failure = None
        if self._begun[1] > FUTILE_ATTEMPTS:
            self._given_up = True
            # a worker that was killed could not say why it failed
            self._failure = self._failure or TrainingError(
                "step", step, f"was begun {FUTILE_ATTEMPTS} times, and each time the workers died before a checkpoint",
                "give them more memory, or lower scale.save_every; Ray's session folder has their logs",
            )  # fmt: skip
        return not self._given_up

    async def is_given_up(self) -> bool:
        """Whether another attempt is pointless."""
        return self._given_up

    async def show(self, progress: dict[str, Any], state: ScheduleState, next_boundary: int) -> None:
        """Rank 0 says how far it is, and what a driver that was restarted has to know."""
        self._progress = progress
        self._state = self._state.newer(state)
        # calls may overtake each other: only sync lowers the boundary
        self._boundary = max(next_boundary, self._boundary or 0)

    async def fail(self, error: Exception, final: bool) -> None:
        """A worker could not go on; `final` where another attempt would end the same way."""
        self._failure = error
        self._given_up = self._given_up or final

    async def status(self) -> dict[str, Any]:
        """Latest progress, schedule version, the failure that ended the run, if one did, and the actor's process."""
        failure = self._failure if self._given_up else None
        return {**self._progress, "version": self._state.version, "failure": failure, "pid": os.getpid()}


def start_driver(name: str, state: ScheduleState) -> Any:
    """Start the driver of the run `name` and return its handle; it ends with the program that started it.

    Raises:
        ConfigError: that run is in progress on this cluster.
    """
    # one thread of control: the methods never wait, so they do not interleave
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ScheduleDriver)
    try:
        return actor.options(name=f"mgray-{name}", namespace=NAMESPACE).remote(state)
    except ValueError:
        raise ConfigError(
            "name", name, "is a run in progress on this cluster", "wait for it, or give another --name"
        ) from None
