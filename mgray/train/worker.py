"""What each worker of Ray Train does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import ray
import torch

from mgray.config import Run
from mgray.data.feed import quiet_ray_data
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import MgrayError
from mgray.train.metrics import next_attempt
from mgray.train.session import RaySession


class WorkConfig(TypedDict):
    """What the trainer tells its workers (Ray passes a dict)."""

    run: dict[str, Any]
    """`Run.to_json()`."""
    folder: str
    """The run's records."""
    shards: str
    driver: Any
    """Handle of the run's `ScheduleDriver`."""


def work(config: WorkConfig) -> None:
    """Train from the newest checkpoint to the end, or return at once where the driver has given the run up."""
    quiet_ray_data()
    from mgray.train.loop import Loop  # takes seconds, and the program that starts workers has no use for it

    run, driver, folder = Run.from_json(config["run"]), config["driver"], Path(config["folder"])
    torch.set_num_threads(run.scale.threads or max(1, int(run.scale.cpus)))
    session = RaySession(driver, folder)
    if ray.get(driver.is_given_up.remote()):
        return
    try:
        attempt = next_attempt(folder) if session.rank == 0 else 0
        loop = Loop(run, session, ShardSet.open(config["shards"]), folder, attempt)
        go_on = [session.rank == 0 and ray.get(driver.begin.remote(loop.step))]
        if session.world_size > 1:
            torch.distributed.broadcast_object_list(go_on, src=0, device=session.device)
        if go_on[0]:
            loop.train()
    except Exception as error:
        # another attempt would meet the same bad input; a lost worker or connection it would not
        final = isinstance(error, MgrayError)
        ray.get(driver.fail.remote(error if final else RuntimeError(f"{type(error).__name__}: {error}"), final))
        raise
