"""How many workers a Ray cluster has room for, read from its nodes as they are now.

Ray Train 2.60's own elastic policy counts nodes from a list that is up to 20 seconds old, and loses a start time-out of 60 seconds
where a dead node is still on it; what is counted here bounds it from above.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.util.client
from ray._private.state import available_resources_per_node


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker reserves."""

    cpus: float
    gpus: float = 0.0

    def resources(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


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
