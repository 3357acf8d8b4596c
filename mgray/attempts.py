"""A run as a series of attempts: each is one `TorchTrainer.fit()` with as many workers as there is room for.

Planned changes of size go through here rather than through Ray Train's own elastic resizing, which ends workers without a word: workers are
told by the driver, save before the next step and leave, and the next attempt starts with the new number. An attempt that fails comes
back here too, where the cluster's nodes are counted afresh; in Ray's controller it would be restarted from a list of nodes that may
still hold the dead one.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch

from mgray.cluster import Need, idle, room, wish
from mgray.config import Run
from mgray.data.feed import GridDataConfig
from mgray.errors import ConfigError, MgrayError, TrainingError
from mgray.plan.state import Departure, Request
from mgray.train.kept import KEEP, kept_in, newest_step, tidy
from mgray.train.metrics import METRICS
from mgray.train.session import FEED
from mgray.train.worker import WorkConfig, work

POLL_S = 0.5
FREED_WITHIN_S = 3.0
"""Seconds in which the resources of an attempt that has ended are surely free again."""
SETTLED_S = 20.0
"""Seconds that new room has to be there before a run grows into it: Ray Train's own list of nodes is as old."""
SAY_EVERY_S = 30.0
WISH_EVERY_S = 5.0
"""Seconds between two hints to the cluster's autoscaler while there is no room; Ray Train's own are repeated every 20."""


@dataclass(slots=True)
class Failures:
    """How often a run failed in a row, with no new checkpoint between."""

    count: int = 0
    _step: int = -1

    def add(self, step: int) -> int:
        """One more, where the newest checkpoint stands before `step`; returns how many there are since the one before it."""
        self.count = 1 if step > self._step else self.count + 1
        self._step = max(step, self._step)
        return self.count


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers an attempt is begun with, and the fewest and most that it may have."""

    workers: int
    least: int
    most: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempts:
    """The attempts of one run."""

    run: Run
    folder: Path
    """Of its records and checkpoints."""
    shards: str
    driver: Any
    """Handle of its `ScheduleDriver`."""
    need: Need
    """What each worker reserves."""
    say: Callable[[str], None]
    """Takes what people should know."""
    grows: bool = True
    """Whether its Ray may get more nodes."""

    def work(self) -> str:
        """Attempt after attempt to the end of the schedule; returns "", or "stop" where somebody asked for that.

        Raises:
            MgrayError: what kept the run from its end.
            KeyboardInterrupt: Ctrl-C.
        """
        if (self.folder / METRICS).is_file() and not kept_in(self.folder):
            self.say(f"has records and no checkpoint in {self.folder}, so that it starts at its first step")
        failures, without, before = Failures(), frozenset[str](), 0
        while True:
            size = self._wait_for_room(without)
            if size is None:
                return "stop"
            if before not in (0, size.workers):
                self.say(f"goes on with {size.workers} workers instead of {before}")
            before = size.workers
            with self._growing(size, without):
                error = self._fit(size)
            status = ray.get(self.driver.status.remote())
            failure = status["failure"]
            if isinstance(failure, MgrayError):
                raise failure
            left: Departure | None = status["left"]
            if failure is None and left is not None:
                if left.why == "stop":
                    return "stop"
                without |= set(left.nodes)
                if left.why == "notice":
                    self.say("a node is about to go: saved, the next attempt does without it")
                continue
            if error is None and failure is None:
                return ""
            count, most = failures.add(newest_step(self.folder)), self.run.scale.max_failures
            if failure is not None or count > most:
                problem = " ".join(str(failure or error).split())[-300:]
                raise TrainingError(
                    "run", self.run.name, f"failed and was given up ({problem})", "see the logs in Ray's session folder"
                )
            self.say(
                f"workers were lost, goes on from the last checkpoint (failure {count} of at most {most} in a row)"
            )

    def _bounds(self, wanted: int) -> tuple[int, int]:
        """The fewest and most workers: as configured, or as somebody asked for since (0: nobody has)."""
        scale = self.run.scale
        if not wanted:
            return scale.min_workers, scale.max_workers
        return (wanted, wanted) if scale.min_workers == scale.max_workers else (min(wanted, scale.min_workers), wanted)

    def _wait_for_room(self, without: Collection[str]) -> Size | None:
        """As many workers as there is room for, once there is enough; None where somebody asks to stop meanwhile."""
        began, step = time.monotonic(), newest_step(self.folder)
        said_at = wished_at = -math.inf
        shown = (0, 0)
        try:
            while True:
                status = ray.get(self.driver.waits.remote(step))
                if status["left"] is not None and status["left"].why == "stop":
                    return None
                least, most = self._bounds(status["wanted"])
                found, now = min(most, room(self.need, without=without)), time.monotonic()
                if found == most or (found >= least and (now - began >= FREED_WITHIN_S or idle(self.need))):
                    return Size(found, least, most)
                if now - began >= FREED_WITHIN_S:
                    if shown != (least, most) or now - said_at >= SAY_EVERY_S:
                        said_at, shown = now, (least, most)
                        self.say(self._waiting(least, found))
                    if self.grows and now - wished_at >= WISH_EVERY_S:
                        wished_at = now
                        wish(self.need, most)
                time.sleep(POLL_S)
        finally:
            if math.isfinite(wished_at):
                wish(self.need, 0)

    def _waiting(self, least: int, found: int) -> str:
        each = " and ".join(f"{amount:g} {name}" for name, amount in self.need.resources().items())
        on_cpus = ", or with --scale.gpu no" if self.need.gpus and self.run.scale.gpu == "auto" else ""
        return (
            f"waiting for room: {least} workers of {each} each, the cluster has room for {found} (add nodes, end other jobs, "
            f"ask for fewer with mgray ctl {self.run.name} resize, or start with fewer --scale.workers{on_cpus})"
        )

    def _fit(self, size: Size) -> Exception | None:
        """One attempt; the error that ended it."""
        tidy(self.folder)
        feed = self.run.feed  # by itself: what is passed on here travels to the workers
        trainer = ray.train.torch.TorchTrainer(
            cast(Any, work),
            train_loop_config=cast(
                Any,
                WorkConfig(run=self.run.to_json(), folder=str(self.folder), shards=self.shards, driver=self.driver),
            ),
            scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
                num_workers=size.workers if size.least == size.workers else (size.least, size.workers),  # type: ignore[arg-type]
                # it grows by way of the driver, so that workers save first
                elastic_resize_monitor_interval_s=float("inf"),
                use_gpu=self.need.gpus > 0,
                resources_per_worker=self.need.resources(),
            ),
            run_config=ray.train.RunConfig(
                name=self.run.name,
                storage_path=str(self.folder.parent),
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEEP),
            ),
            datasets={FEED: cast(Any, lambda: feed)},  # GridDataConfig makes shards of it
            dataset_config=GridDataConfig(),
        )
        try:
            with _interruptible():
                trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:  # or its controller died
            return error
        return None

    @contextlib.contextmanager
    def _growing(self, size: Size, without: Collection[str]) -> Iterator[None]:
        """Ask for a change of size when there is room for more workers; from a thread, since fit() holds the main one."""
        stop = threading.Event()

        def watch() -> None:
            began, roomy_since = time.monotonic(), None
            while not stop.wait(POLL_S * 4):
                with contextlib.suppress(ray.exceptions.RayError, ConfigError):
                    now, status = time.monotonic(), ray.get(self.driver.status.remote(), timeout=10)
                    held = status.get("workers", size.workers)
                    if min(size.most, room(self.need, held, without)) <= held:
                        roomy_since = None
                        continue
                    roomy_since = roomy_since or now
                    if now - roomy_since >= SETTLED_S and now - began >= self.run.scale.resize_every_s:
                        request = Request(uuid.uuid4().hex, "resize", status["wanted"])
                        ray.get(self.driver.request.remote(request), timeout=10)
                        return

        thread = threading.Thread(target=watch, daemon=True, name="mgray-growth")
        if size.workers < size.most:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.ident:
                thread.join()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt, as before and after: Ray Train's handler, which `fit` leaves in place, ends the program as if all were
    well, and does nothing between two attempts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
