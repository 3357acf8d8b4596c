"""What rank 0 notices while all ranks are busy, and how all of them learn it at the same point."""

from __future__ import annotations

import enum
import time

import torch
import torch.distributed as dist

from mgray.train.session import Session

NOTICE_EVERY_S = 5.0
"""Seconds between two looks at whether a node has been given notice."""


class Signal(enum.IntFlag):
    """What rank 0 tells all ranks along with the sums of a flush."""

    NEWS = 1
    """The driver has requests or a newer schedule."""
    NOTICE = 2
    """Ask Ray whether one of the workers' nodes is about to go."""
    SAVE = 4


class NoticeGiven(Exception):
    """To a node of a worker, in the middle of something that is left for that."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        super().__init__(*nodes)
        self.nodes = nodes


class Lookout:
    """Of one rank; `save_s` are the seconds between checkpoints, 0 where time does not count."""

    def __init__(self, session: Session, save_s: float) -> None:
        self._session, self._save_s = session, save_s
        self._noticed_at = time.monotonic()

    def signal(self, saved_at: float) -> Signal:
        """What rank 0 has to say; the last checkpoint was saved at `saved_at`."""
        if self._session.rank != 0:
            return Signal(0)
        signal = self._notice()
        if self._session.news():
            signal |= Signal.NEWS
        if 0 < self._save_s <= time.monotonic() - saved_at:
            signal |= Signal.SAVE
        return signal

    def heed(self) -> None:
        """Look for notices now and then; every rank has to call it as often.

        Raises:
            NoticeGiven: on all ranks, to one of their nodes.
        """
        word = torch.tensor([int(self._notice())], device=self._session.device)
        if self._session.world_size > 1:
            dist.broadcast(word, src=0)
        if word.item() and (nodes := self._session.leaving_nodes()):
            raise NoticeGiven(nodes)

    def _notice(self) -> Signal:
        now = time.monotonic()
        if self._session.rank != 0 or now - self._noticed_at < NOTICE_EVERY_S:
            return Signal(0)
        self._noticed_at = now
        return Signal.NOTICE
