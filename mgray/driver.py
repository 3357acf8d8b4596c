"""The driver of a run: one small actor that owns the schedule's state, takes requests, and shows how far the run is.

It holds nothing that cannot be had anew: what it was asked for and what workers were told of it is in the run's folder (`requests.json`)
before anybody hears of it, amendments that workers have taken up are there and in checkpoints too, and progress is shown again. When it
dies, Ray starts it anew and it goes on from there; what it forgets (how often an attempt began at one step) costs another attempt at most.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mgray.errors import CheckpointError, ConfigError, MgrayError, TrainingError
from mgray.jsonfile import write_json
from mgray.plan import Plan
from mgray.plan.state import Departure, Orders, Request, ScheduleState

NAMESPACE = "mgray"
MEMORY = 2**20
"""Bytes that the actor reserves: Ray (2.60) heeds a wish for a node only where an actor needs something."""
REQUESTS = "requests.json"
"""In a run's folder: what it was asked for."""
STARTING = "its workers are starting, or wait for room"
FUTILE_ATTEMPTS = 3
"""Attempts that begin at the same step, none getting further, after which the run is given up."""


GAUGES = {
    "step": ("mgray_step", "Steps done"),
    "done": ("mgray_done", "Share of the schedule's voxels that is trained, 0 to 1"),
    "phase": ("mgray_phase", "Phase of the schedule"),
    "epoch": ("mgray_epoch", "Epoch"),
    "lr": ("mgray_learning_rate", "Learning rate"),
    "loss": ("mgray_loss", "Mean training loss since the last flush"),
    "score": ("mgray_score", "Last validation: top-1, or mAP of multi-label videos, 0 to 1"),
    "clips_per_s": ("mgray_clips_per_second", "Clips trained per second, all workers"),
    "wait_share": ("mgray_wait_share", "Share of the time that rank 0 waits for data, 0 to 1"),
    "workers": ("mgray_workers", "Training workers"),
}
"""Progress that Ray's dashboard and Prometheus show, with the tag `run`: name and description."""


class ScheduleDriver:
    """Schedule state, versioned and append-only, open requests, and the latest progress of one run."""

    def __init__(
        self,
        plan: Plan,
        state: ScheduleState,
        name: str = "",
        folder: Path | None = None,
        program: str = "",
        most: int = 0,
    ) -> None:
        """`folder` is the run's, where what has to outlive this actor is kept; `program` names the one that trains it now.

        `most` workers are all that its cluster will ever hold; 0 where that is not known.

        Raises:
            CheckpointError: what the folder holds is damaged, or of another plan.
        """
        self._name, self._folder, self._program, self._most = name, folder, program, most
        self._gauges: dict[str, Gauge] = {}
        self._plan = plan
        self._state = state
        self._next_step: int | None = None
        self._pending: dict[str, Request] = {}
        self._taken: set[str] = set()
        """Of requests that are no amendments."""
        self._withdrawn: set[str] = set()
        self._refused: dict[str, ConfigError] = {}
        self._wanted = 0
        self._saves: set[int] = set()
        self._departures: dict[int, Departure] = {}
        self._soon: set[int] = set()
        """Steps of the departures for which nobody named a step."""
        self._left: Departure | None = None
        self._progress: dict[str, Any] = {}
        self._doing = STARTING
        """What keeps the workers from taking requests up; empty while they train."""
        self._begun: tuple[int, int] = (-1, 0)
        self._failure: Exception | None = None
        self._given_up = False
        self._recall()

    def _keep(self) -> None:
        """Write down what has to outlive this actor."""
        if self._folder is None:
            return
        tree = {
            "program": self._program,
            "schedule": self._state.to_json(),
            "pending": [[r.key, r.kind, r.value, r.from_step] for r in self._pending.values()],
            "taken": sorted(self._taken),
            "withdrawn": sorted(self._withdrawn),
            "wanted": self._wanted,
            "saves": sorted(self._saves),
            "departures": [dataclasses.astuple(departure) for departure in self._departures.values()],
            "soon": sorted(self._soon),
            "left": None if self._left is None else dataclasses.astuple(self._left),
        }
        write_json(self._folder / REQUESTS, tree)

    def _recall(self) -> None:
        """Go on from what was written down; another program takes over only what is still to come at a named step."""
        path = None if self._folder is None else self._folder / REQUESTS
        if path is None or not path.is_file():
            return
        try:
            tree = json.loads(path.read_text())
            self._state = self._state.newer(ScheduleState.from_json(tree["schedule"]))
            self._saves = set(tree["saves"])
            departures = [_departure(fields) for fields in tree["departures"]]
            self._soon = set(tree["soon"])
            if tree["program"] == self._program:
                self._pending = {fields[0]: Request(*fields) for fields in tree["pending"]}
                self._taken, self._withdrawn = set(tree["taken"]), set(tree["withdrawn"])
                self._wanted = int(tree["wanted"])
                self._left = None if tree["left"] is None else _departure(tree["left"])
            else:
                departures = [departure for departure in departures if departure.step not in self._soon]
                self._soon = set()
            self._departures = {departure.step: departure for departure in departures}
        except (ValueError, KeyError, TypeError, MgrayError) as error:
            raise CheckpointError(
                "requests", str(path), f"cannot be gone on with ({' '.join(str(error).split())})",
                "remove it: what was asked for at steps to come is forgotten then",
            ) from None  # fmt: skip

    async def request(self, request: Request) -> None:
        """Take a request; it is done when `status` lists its key as taken. The same key again changes nothing.

        Raises:
            ConfigError: it cannot be done, or no worker has said yet (since this actor was started or restarted) how
                far the run is and which amendments there are.
        """
        if request.key in self._pending or request.key in self._withdrawn or request.key in self._all_taken():
            return
        if self._next_step is None:
            raise ConfigError(
                "request", request.kind, "comes before the workers have said how far they are", "try again in a moment"
            )
        if request.kind == "resize" and 0 < self._most < request.value:
            raise ConfigError(
                "resize", int(request.value), f"is more than this run's Ray has room for ({self._most})", f"give at most {self._most}"
            )  # fmt: skip
        request.check(self._plan, self._state, self._next_step)
        self._pending[request.key] = request
        self._keep()

    async def withdraw(self, key: str) -> bool:
        """Take a request back, also one that is still on its way; False where workers have taken it up already."""
        if key in self._all_taken():
            return False
        self._withdrawn.add(key)
        self._pending.pop(key, None)
        self._keep()
        return True

    async def sync(self, state: ScheduleState, step: int) -> Orders:
        """Workers stand before `step`: requests become amendments from there on, or orders to save or leave."""
        self._state = self._state.newer(state)
        self._next_step = step
        before = self._saves
        self._saves = {at for at in self._saves if at >= step}
        for request in self._pending.values():
            self._take(request, step)
        if self._pending or self._saves != before:
            self._pending.clear()
            self._keep()
        return Orders(self._state, tuple(sorted(self._saves)), tuple(self._departures.values()))

    def _take(self, request: Request, step: int) -> None:
        """Make an amendment or an order of a request."""
        try:
            request.check(self._plan, self._state, step)
        except ConfigError as error:
            self._refused[request.key] = error
            return
        at = max(request.from_step, step)
        amendment = request.amendment(at)
        if amendment is not None:
            self._state = self._state.amended(amendment, step)
            return
        self._taken.add(request.key)
        if request.kind == "checkpoint":
            self._saves.add(at)
        elif request.kind == "stop" or request.kind == "resize":
            self._departures[at] = Departure(at, request.kind, int(request.value))
            self._soon = self._soon - {at} if request.from_step else self._soon | {at}

    async def show(self, progress: dict[str, Any], state: ScheduleState, step: int) -> bool:
        """Rank 0 says how far it is, and what a driver that was restarted has to know; True asks it to `sync`."""
        self._progress, self._doing = progress, progress.get("doing", "")
        if self._name:
            self._measure(progress)
        self._state = self._state.newer(state)
        # calls may overtake each other: only sync lowers the step
        self._next_step = max(step, self._next_step or 0)
        return bool(self._pending) or self._state.version > state.version

    def _measure(self, progress: dict[str, Any]) -> None:
        for key in GAUGES.keys() & progress.keys():
            if key not in self._gauges:
                name, description = GAUGES[key]
                self._gauges[key] = Gauge(name, description, tag_keys=("run",))
                self._gauges[key].set_default_tags({"run": self._name})
            self._gauges[key].set(float(progress[key]))

    async def begin(self, step: int) -> bool:
        """A worker group starts from `step`; False where going on is pointless and it should return at once."""
        last, times = self._begun
        self._begun = (step, times + 1 if step == last else 1)
        self._left, self._doing = None, STARTING
        self._keep()
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

    async def leave(self, departure: Departure) -> None:
        """The workers have saved and end this attempt."""
        self._left, self._begun, self._doing = departure, (-1, 0), STARTING
        if departure.why != "notice":  # a notice does what nobody asked for
            self._departures = {at: other for at, other in self._departures.items() if at > departure.step}
        if departure.why == "resize":
            self._wanted = departure.workers
        self._keep()

    async def waits(self, step: int) -> dict[str, Any]:
        """The trainer waits for room, and its next workers will begin at `step`: another size or the end that is asked for from there on
        is taken up here, since no worker does; returns the status then."""
        self._next_step = step
        if self._left is not None and self._left.why != "stop":
            self._left = None
            self._keep()
        for request in [*self._pending.values()]:
            if (request.kind == "stop" or request.kind == "resize") and request.from_step <= step:
                self._taken.add(self._pending.pop(request.key).key)
                await self.leave(Departure(step, request.kind, int(request.value)))
        return await self.status()

    async def is_given_up(self) -> bool:
        """Whether another attempt is pointless."""
        return self._given_up

    async def fail(self, error: Exception, final: bool) -> None:
        """A worker could not go on; `final` where another attempt would end the same way."""
        self._failure = error
        self._given_up = self._given_up or final

    async def status(self) -> dict[str, Any]:
        """Latest progress, the schedule's amendments, requests taken, why workers left, the failure that ended the run, the actor's process."""
        failure = self._failure if self._given_up else None
        return {
            **self._progress,
            "version": self._state.version,
            "amendments": self._state.to_json()["amendments"],
            "saves": sorted(self._saves),
            "departures": [(departure.step, departure.why) for departure in self._departures.values()],
            "taken": sorted(self._all_taken()),
            "refused": dict(self._refused),
            "ready": self._next_step is not None,
            "doing": self._doing,
            "wanted": self._wanted,
            "left": self._left,
            "failure": failure,
            "pid": os.getpid(),
        }

    def _all_taken(self) -> set[str]:
        return self._taken | {a.key for a in self._state.amendments if a.key}


def _departure(fields: list[Any]) -> Departure:
    step, why, workers, nodes = fields
    return Departure(int(step), why, int(workers), tuple(nodes))


def driver_name(run: str) -> str:
    """Name of a run's driver among a cluster's actors."""
    return f"mgray-{run}"


def start_driver(name: str, plan: Plan, state: ScheduleState, folder: Path | None = None, most: int = 0) -> Any:
    """Start the driver of the run `name` in `folder` and return its handle; it ends with the program that started it.

    No resize above `most` workers is taken, where that is not 0.

    It runs on that program's node where it can, so that a run loses its driver with no other node.

    Raises:
        ConfigError: that run is in progress on this cluster.
        CheckpointError: what the run was asked for cannot be read, or is of another plan.
    """
    program = uuid.uuid4().hex
    ScheduleDriver(plan, state, name, folder, program)  # an actor could not say what is wrong
    # one thread of control: the methods never wait, so they do not interleave
    actor = ray.remote(num_cpus=0, memory=MEMORY, max_restarts=-1, max_task_retries=-1)(ScheduleDriver)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    try:
        return actor.options(name=driver_name(name), namespace=NAMESPACE, scheduling_strategy=here).remote(
            plan, state, name, folder, program, most
        )
    except ValueError:
        raise ConfigError(
            "name", name, "is a run in progress on this cluster", "wait for it, or give another --name"
        ) from None
