import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from mgray.config import FeedSection
from mgray.data.local_feed import LocalFeed
from mgray.data.source import Block
from mgray.errors import VideoError


@dataclass
class Recorder:
    """A source without videos that keeps a record of what it was asked."""

    bad: int = -1
    empty: int = -1
    started: list[tuple[int, int, int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        self.started.append((index, rank, world_size))
        assert self.gate.wait(10)
        time.sleep(0.002 * (index % 3))
        if index == self.bad:
            raise VideoError("data.path", f"{index}.mp4", "is noise", "take it out")
        if index == self.empty:
            return None
        one = np.full(1, index)
        return Block(index, 0, np.zeros((1, 1, 1, 1, 3), np.uint8), one, one, one)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        return 3

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.started) < count and time.monotonic() < deadline:
            time.sleep(0.005)


def decode_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mgray-decode")]


@pytest.mark.parametrize("decoders", [1, 4])
@pytest.mark.parametrize("ahead", [1, 8])
def test_blocks_come_in_order_over_segments(decoders, ahead):
    source = Recorder(empty=7)
    feed = LocalFeed(FeedSection(decoders=decoders, ahead=ahead), rank=2, world_size=5)
    with feed.blocks(source, [range(3, 9), range(9, 9), range(9, 25)]) as blocks:
        indices = [None if block is None else block.index for block in blocks]
    assert indices == [None if index == 7 else index for index in range(3, 25)]
    assert {(rank, world_size) for _, rank, world_size in source.started} == {(2, 5)}
    assert decode_threads() == []


def test_no_segment_no_block():
    with LocalFeed(FeedSection()).blocks(Recorder(), []) as blocks:
        assert list(blocks) == []


def test_decoding_is_ahead_but_not_too_far():
    source = Recorder()
    with LocalFeed(FeedSection(decoders=2, ahead=3)).blocks(source, [range(50)]) as blocks:
        for taken in range(1, 10):
            next(blocks)
            source.wait_for(taken + 3)
            time.sleep(0.01)
            assert len(source.started) == taken + 3


def test_closing_early_cancels_what_has_not_begun():
    source = Recorder()
    feed = LocalFeed(FeedSection(decoders=1, ahead=8)).blocks(source, [range(50)])
    with feed as blocks:
        next(blocks)
        source.gate.clear()
        source.wait_for(2)
        threading.Timer(0.05, source.gate.set).start()
    assert len(source.started) <= 9
    begun = len(source.started)
    time.sleep(0.05)
    assert len(source.started) == begun
    assert decode_threads() == []
    assert list(blocks) == []


def test_an_error_surfaces_at_its_block():
    source = Recorder(bad=5)
    seen = []
    with LocalFeed(FeedSection(decoders=2, ahead=4)).blocks(source, [range(50)]) as blocks:
        with pytest.raises(VideoError, match=r"5\.mp4"):
            for block in blocks:
                seen.append(block.index)
        assert list(blocks) == []
    assert seen == [0, 1, 2, 3, 4]
    assert len(source.started) <= 5 + 4 + 1
    assert decode_threads() == []


def test_large_blocks_are_decoded_ahead_within_the_memory_that_is_given():
    source = Recorder()
    source.num_bytes = lambda index, rank, world_size: 100
    feed = LocalFeed(FeedSection(decoders=1, ahead=8, ahead_gib=250 / 2**30))
    with feed.blocks(source, [range(20)]) as blocks:
        next(blocks)
        source.wait_for(3)
        time.sleep(0.05)
        assert len(source.started) == 3
        assert [block.index for block in blocks] == list(range(1, 20))
