"""How many workers a Ray cluster has room for, read from its nodes as they are now.

Ray Train 2.60's own elastic policy counts nodes from a list that is up to 20 seconds old, and loses a start time-out of 60 seconds
where a dead node is still on it; what is counted here bounds it from above.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.util.client
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources

from mgray.config import ScaleSection
from mgray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker reserves."""

    cpus: float
    gpus: float = 0.0

    def resources(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def need_of(scale: ScaleSection, gpus: float, *, grows: bool) -> Need:
    """What each worker reserves on a Ray that has so many GPUs: one of them where there are any, or --scale.gpu says so.

    Raises:
        ConfigError: they are fewer than the workers, and no more will come.
    """
    if scale.gpu == "no" or (scale.gpu == "auto" and not gpus):
        return Need(scale.cpus)
    if gpus < scale.min_workers and not grows:
        raise ConfigError(
            "scale.workers", scale.workers, f"is more than the {gpus:g} GPUs that Ray finds here",
            "ask for fewer, or give --scale.gpu no to train on CPUs",
        )  # fmt: skip
    return Need(scale.cpus, 1.0)


def described(need: Need, scale: ScaleSection, gpus: float, *, grows: bool) -> str:
    """What workers compute on, for people."""
    if need.gpus:
        return f"trains on GPUs, one for each worker (Ray finds {gpus:g})"
    if scale.gpu == "no":
        return "trains on CPUs, as --scale.gpu no says"
    return "trains on CPUs: Ray finds no GPU" + (
        "; --scale.gpu yes would wait for nodes that have some" if grows else ""
    )


def num_gpus() -> float:
    """GPUs of the nodes that live, whoever holds them."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(float(node["Resources"].get("GPU", 0.0)) for node in nodes if node["Alive"])


def wish(need: Need, workers: int) -> None:
    """Ask the cluster's autoscaler, where there is one, for nodes that hold so many workers; 0 takes it back.

    It is a hint, of which Ray has one for the whole cluster: whoever else gives one takes its place, so that it has to be repeated.
    """
    with contextlib.suppress(ray.exceptions.RayError, RuntimeError):
        request_resources(bundles=[need.resources()] * workers)


Free = Mapping[str, Mapping[str, float]]
"""Resources of each node, by its id, that nobody holds."""


def room_of(need: Need, nodes: list[dict[str, Any]], free: Free, held: int = 0, without: Collection[str] = ()) -> int:
    """Workers that fit; none spans nodes.

    Args:
        nodes: as `ray.nodes()` lists them.
        held: workers of our own that run now, and would make room.
        without: ids of nodes that are about to go.
    """
    alive = [node for node in nodes if node["Alive"] and node["NodeID"] not in without]
    return min(
        sum(_fit(need, node["Resources"]) for node in alive),
        sum(_fit(need, free.get(node["NodeID"], {})) for node in alive) + held,
    )


def _fit(need: Need, resources: Mapping[str, float]) -> int:
    return min(int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in need.resources().items())


def is_idle(need: Need, nodes: list[dict[str, Any]], free: Free) -> bool:
    """Whether nobody holds any of what a worker reserves, of the living nodes that `ray.nodes()` lists."""
    return all(
        free.get(node["NodeID"], {}).get(name, 0.0) + 1e-6 >= node["Resources"].get(name, 0.0)
        for node in nodes if node["Alive"] for name in need.resources()
    )  # fmt: skip


def idle(need: Need) -> bool:
    """Whether nobody holds any of what a worker reserves, so that no more room can come free."""
    return is_idle(need, ray.nodes(), free())  # type: ignore[no-untyped-call]


def room(need: Need, held: int = 0, without: Collection[str] = ()) -> int:
    """Workers that the cluster has room for; `held` of them run now, nodes `without` are about to go."""
    return room_of(need, ray.nodes(), free(), held, without)  # type: ignore[no-untyped-call]


def capacity(need: Need) -> int:
    """Workers that the cluster's nodes hold where nobody else is on them."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return room_of(need, nodes, {node["NodeID"]: node["Resources"] for node in nodes})


def free() -> Free:
    """What nobody holds of each node; Ray's public API has only its sum over the cluster."""
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]  # this program is no part of the cluster: a task asks
        found: Free = ray.get(ray.remote(num_cpus=0)(available_resources_per_node).remote())
        return found
    return cast(Free, available_resources_per_node())  # type: ignore[no-untyped-call]
