"""A feed for one process without Ray: decodes ahead in threads."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mgray.config import FeedSection
from mgray.data.source import Block, Blocks, ClipSource


@dataclass(frozen=True, slots=True)
class LocalFeed:
    """The same blocks as those of Ray's feed."""

    section: FeedSection
    rank: int = 0
    world_size: int = 1

    def blocks(self, source: ClipSource, segments: Sequence[range]) -> contextlib.closing[Blocks]:
        return contextlib.closing(self._blocks(source, segments))

    def _blocks(self, source: ClipSource, segments: Sequence[range]) -> Blocks:
        steps = itertools.chain.from_iterable(segments)
        pending: deque[Future[Block | None]] = deque()
        budget = int(self.section.ahead_gib * 2**30)
        decoders = self.section.decoders or max(1, (os.cpu_count() or 1) - 1)
        with ThreadPoolExecutor(decoders, thread_name_prefix="mgray-decode") as pool:
            try:
                for step in steps:
                    pending.append(pool.submit(source.block, step, self.rank, self.world_size))
                    size = source.num_bytes(step, self.rank, self.world_size)
                    if len(pending) > min(self.section.ahead, max(1, budget // max(1, size))):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
