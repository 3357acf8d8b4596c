"""Processes beside a test, as ranks of a group: forked from one that has imported the loop, which takes each of them seconds otherwise."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mgray.train.loop"])


def run_together(target: Callable[..., None], count: int, *args: Any, within_s: float = 300) -> list[int | None]:
    """The exit codes of `target(rank, *args)` in a process for each rank; None where one had not ended in time, and was killed."""
    ranks = [_CONTEXT.Process(target=target, args=(rank, *args)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(within_s)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes
