"""Videos that end the process that decodes them: an attempt that "dies" here raises what nothing catches, and leaves its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgray.data import source as source_module
from mgray.data.decode.transcode import Ingested
from mgray.data.ingest_part import Outcome, Part, Report, SourceVideo, encode_part
from mgray.data.source import Block, TrainSource
from mgray.data.storage import Folder
from mgray.data.watch import CRASHES, ENDS, TASK_RETRIES, Watch, watched
from mgray.plan import Plan, PlanSpec
from tests.support.shards import write_shards
from tests.support.videos import write_tree


class Died(BaseException):
    """Stands for the end of the process."""


def attempts(work, most: int = TASK_RETRIES + 1):
    """What Ray makes of a task whose process dies: its result, and how many attempts died before it."""
    for attempt in range(most):
        try:
            return work(), attempt
        except Died:
            pass
    raise AssertionError("given up")


@pytest.fixture
def part(tmp_path: Path) -> Part:
    write_tree(tmp_path / "videos", {"a": 6}, frames=4)
    videos = [
        SourceVideo(location=str(tmp_path / "videos" / path), path=path, label=0, split="train", group="", num_bytes=1, actions=())
        for path in (f"a/{number}.mp4" for number in range(6))
    ]  # fmt: skip
    return Part(index=0, levels=(32,), limit_s=60.0, source=str(tmp_path / "videos"), videos=tuple(videos))


@pytest.mark.parametrize("fatal", [(), ("a/0.mp4",), ("a/1.mp4", "a/5.mp4")])
def test_ingest_leaves_out_what_ends_its_processes(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: tuple[str, ...]
) -> None:
    whole = Part.read

    def read(self: Part, video: SourceVideo) -> Ingested:
        if video.path in fatal:
            raise Died
        return whole(self, video)

    monkeypatch.setattr(Part, "read", read)
    folder = Folder.of(str(tmp_path / "out"))
    reports, died = attempts(lambda: list(encode_part(folder, part, "this")))
    assert died == (1 + ENDS * len(fatal) if fatal else 0)
    outcome = Outcome.from_json(reports[-1].outcome)
    assert {item.path: item.reason for item in outcome.broken} == dict.fromkeys(fatal, CRASHES)
    assert len(outcome.rows) == 6 - len(fatal)


def test_more_than_the_attempts_of_one_ingest_can_tell_are_left_out_by_the_next(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fatal, whole = {"a/0.mp4", "a/2.mp4", "a/3.mp4", "a/4.mp4"}, Part.read

    def read(self: Part, video: SourceVideo) -> Ingested:
        if video.path in fatal:
            raise Died
        return whole(self, video)

    monkeypatch.setattr(Part, "read", read)
    folder = Folder.of(str(tmp_path / "out"))
    with pytest.raises(AssertionError, match="given up"):
        attempts(lambda: list(encode_part(folder, part, "this")))
    reports, _ = attempts(lambda: list(encode_part(folder, part, "next")))
    assert {item.path for item in Outcome.from_json(reports[-1].outcome).broken} == fatal
    assert not list((tmp_path / "out").rglob("*.watch"))


def test_what_is_stopped_from_outside_is_not_blamed(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once while it works on a video, and over and over by the user, who starts it again."""
    whole, stops = Part.read, ENDS

    def read(self: Part, video: SourceVideo) -> Ingested:
        nonlocal stops
        if video.path == "a/3.mp4" and stops:
            stops -= 1
            raise Died
        return whole(self, video)

    monkeypatch.setattr(Part, "read", read)
    folder = Folder.of(str(tmp_path / "out"))
    reports, died = attempts(lambda: list(encode_part(folder, part, "this")))
    assert died == ENDS and not Outcome.from_json(reports[-1].outcome).broken
    for call in range(4):
        stops = 1
        with pytest.raises(Died):
            list(encode_part(folder, part, f"call {call}"))
    assert not Outcome.from_json(list(encode_part(folder, part, "last"))[-1].outcome).broken


def test_an_attempt_that_cannot_leave_word_says_so(part: Part, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    (report,) = encode_part(Folder.of(str(tmp_path / "out")), part, "this")
    assert isinstance(report, Report) and report.error and not report.outcome


def test_a_video_that_ends_decode_tasks_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path / "shards")
    spec = PlanSpec(frames=4, crop=16, batch=4, stride=1, jitter_min=18, jitter_max=24, epochs=4, lr_steps=(0,), lr_factors=(1.0,),
                    long_cycle="off", short_cycle=False, bn_group=2)  # fmt: skip
    source = TrainSource(shards, Plan.compile(spec, shards.num_samples("train")), seed=3, fps=0.0, flip=False)
    expected = source.block(0, 0, 1)
    assert expected is not None
    fatal, whole = int(expected.samples_N[1]), source_module.decode_clips

    def decode(video, specs, out):
        if specs[0].sample == fatal:
            raise Died
        whole(video, specs, out)

    monkeypatch.setattr(source_module, "decode_clips", decode)
    folder = Folder.of(str(tmp_path))

    def task() -> Block | None:
        watch = Watch(folder, "task.json", "this")
        with watched(watch):
            block = source.block(0, 0, 1)
        watch.end()
        return block

    block, died = attempts(task)
    assert died == 1 + ENDS and block is not None
    assert [(fault.sample, fault.reason) for fault in block.faults] == [(fatal, CRASHES)]
    assert fatal not in block.samples_N and block.samples_N[0] == expected.samples_N[0]
    assert not (tmp_path / "task.json").exists()
