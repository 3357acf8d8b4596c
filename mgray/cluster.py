"""How many workers a Ray cluster has room for, read from its nodes as they are now.

Ray Train 2.60's own elastic policy counts nodes from a list that is up to 20 seconds old, and loses a start time-out of 60 seconds
where a dead node is still on it; what is counted here bounds it from above.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker reserves."""

    cpus: float
    gpus: float = 0.0

    def resources(self) -> dict[str, float]:
        """As Ray writes it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def room_of(
    need: Need, nodes: list[dict[str, Any]], free: dict[str, float], held: int, without: Collection[str] = ()
) -> int:
    """Workers that fit.

    Args:
        nodes: as `ray.nodes()` lists them.
        free: resources of the whole cluster that nobody holds.
        held: workers of our own that run now, and would make room.
        without: ids of nodes that are about to go.
    """
    wanted = need.resources()
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in without]
    by_node = sum(min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()) for node in alive)
    by_rest = min(int(free.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items()) + held
    return min(by_node, by_rest)


def is_idle(need: Need, nodes: list[dict[str, Any]], free: dict[str, float]) -> bool:
    """Whether nobody holds any of what a worker reserves: resources of living nodes as `ray.nodes()` lists them, and what is free of them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return all(free.get(name, 0.0) + 1e-6 >= sum(node.get(name, 0.0) for node in alive) for name in need.resources())


def idle(need: Need) -> bool:
    """Whether nobody holds any of what a worker reserves, so that no more room can come free."""
    return is_idle(need, ray.nodes(), ray.available_resources())  # type: ignore[no-untyped-call]


def room(need: Need, held: int = 0, without: Collection[str] = ()) -> int:
    """Workers that the cluster has room for; `held` of them run now, nodes `without` are about to go."""
    return room_of(need, ray.nodes(), ray.available_resources(), held, without)  # type: ignore[no-untyped-call]
