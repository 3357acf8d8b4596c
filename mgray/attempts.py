"""A run as a series of attempts: each is one `TorchTrainer.fit()` with as many workers as there is room for.

Planned changes of size go through here rather than through Ray Train's own elastic resizing, which ends workers without a word: workers are
told by the driver, save before the next step and leave, and the next attempt starts with the new number. An attempt that fails comes
back here too, where the cluster's nodes are counted afresh; in Ray's controller it would be restarted from a list of nodes that may
still hold the dead one.
"""

from __future__ import annotations

import contextlib
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

from mgray.cluster import Need, idle, room
from mgray.config import Run
from mgray.data.feed import GridDataConfig
from mgray.errors import ConfigError, MgrayError, TrainingError
from mgray.plan.state import Departure, Request
from mgray.train.session import FEED
from mgray.train.worker import WorkConfig, work

KEEP_CHECKPOINTS = 3
POLL_S = 0.5
FREED_WITHIN_S = 3.0
"""Seconds in which the resources of an attempt that has ended are surely free again."""
SETTLED_S = 20.0
"""Seconds that new room has to be there before a run grows into it: Ray Train's own list of nodes is as old."""
SAY_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempts:
    """The attempts of one run."""

    run: Run
    folder: Path
    """Of its records and checkpoints."""
    shards: str
    driver: Any
    """Handle of its `ScheduleDriver`."""
    say: Callable[[str], None]
    """Takes what people should know."""

    def work(self) -> str:
        """Attempt after attempt to the end of the schedule; returns "", or "stop" where somebody asked for that.

        Raises:
            MgrayError: what kept the run from its end.
        """
        failures, without = 0, frozenset[str]()
        need, before = self._need(), 0
        while True:
            least, most = self._bounds()
            workers = self._wait_for_room(need, least, most, without)
            if before not in (0, workers):
                self.say(f"goes on with {workers} workers instead of {before}")
            before = workers
            with self._growing(need, workers, most, without):
                error = self._fit(need, least, workers)
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
            failures += 1
            if failure is not None or failures > self.run.scale.max_failures:
                problem = " ".join(str(failure or error).split())[-300:]
                raise TrainingError(
                    "run", self.run.name, f"failed and was given up ({problem})", "see the logs in Ray's session folder"
                )
            self.say(
                f"workers were lost, goes on from the last checkpoint (failure {failures} of at most {self.run.scale.max_failures})"
            )

    def _need(self) -> Need:
        scale = self.run.scale
        gpus = float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
        use_gpu = scale.gpu == "yes" or (scale.gpu == "auto" and gpus >= scale.min_workers)
        if scale.gpu == "yes" and gpus < scale.min_workers:
            raise ConfigError(
                "scale.workers", scale.workers, f"is more than the cluster's {gpus:.0f} GPUs", "ask for fewer, or give --scale.gpu auto"
            )  # fmt: skip
        return Need(scale.cpus, 1.0 if use_gpu else 0.0)

    def _bounds(self) -> tuple[int, int]:
        """The fewest and most workers, as configured or as somebody asked for since."""
        scale, wanted = self.run.scale, ray.get(self.driver.status.remote())["wanted"]
        if not wanted:
            return scale.min_workers, scale.max_workers
        return (wanted, wanted) if scale.min_workers == scale.max_workers else (min(wanted, scale.min_workers), wanted)

    def _wait_for_room(self, need: Need, least: int, most: int, without: Collection[str]) -> int:
        """As many workers as there is room for, once there is enough."""
        began = said_at = time.monotonic()
        while True:
            found, now = min(most, room(need, without=without)), time.monotonic()
            if found == most or (found >= least and (now - began >= FREED_WITHIN_S or idle(need))):
                return found
            if now - began >= FREED_WITHIN_S and (said_at == began or now - said_at >= SAY_EVERY_S):
                said_at = now
                each = " and ".join(f"{amount:g} {name}" for name, amount in need.resources().items())
                self.say(
                    f"waiting for room: {least} workers of {each} each, the cluster has room for {found} "
                    "(add nodes, end other jobs, or start with fewer --scale.workers)"
                )
            time.sleep(POLL_S)

    def _fit(self, need: Need, least: int, workers: int) -> Exception | None:
        """One attempt; the error that ended it."""
        feed = self.run.feed  # by itself: what is passed on here travels to the workers
        trainer = ray.train.torch.TorchTrainer(
            cast(Any, work),
            train_loop_config=cast(
                Any,
                WorkConfig(run=self.run.to_json(), folder=str(self.folder), shards=self.shards, driver=self.driver),
            ),
            scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
                num_workers=workers if least == workers else (least, workers),  # type: ignore[arg-type]
                # it grows by way of the driver, so that workers save first
                elastic_resize_monitor_interval_s=float("inf"),
                use_gpu=need.gpus > 0,
                resources_per_worker=need.resources(),
            ),
            run_config=ray.train.RunConfig(
                name=self.run.name,
                storage_path=str(self.folder.parent),
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
            ),
            datasets={FEED: cast(Any, lambda: feed)},  # GridDataConfig makes shards of it
            dataset_config=GridDataConfig(),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return error
        return None

    @contextlib.contextmanager
    def _growing(self, need: Need, workers: int, most: int, without: Collection[str]) -> Iterator[None]:
        """Ask for a change of size when there is room for more workers; from a thread, since fit() holds the main one."""
        stop = threading.Event()

        def watch() -> None:
            began, roomy_since = time.monotonic(), None
            while not stop.wait(POLL_S * 4):
                with contextlib.suppress(ray.exceptions.RayError, ConfigError):
                    now, status = time.monotonic(), ray.get(self.driver.status.remote(), timeout=10)
                    held = status.get("workers", workers)
                    if min(most, room(need, held, without)) <= held:
                        roomy_since = None
                        continue
                    roomy_since = roomy_since or now
                    if now - roomy_since >= SETTLED_S and now - began >= self.run.scale.resize_every_s:
                        request = Request(uuid.uuid4().hex, "resize", status["wanted"])
                        ray.get(self.driver.request.remote(request), timeout=10)
                        return

        thread = threading.Thread(target=watch, daemon=True, name="mgray-growth")
        if workers < most:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.ident:
                thread.join()
