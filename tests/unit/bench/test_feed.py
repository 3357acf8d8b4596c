"""The bench of the feed: its clips are the schedule's, all readers read the same, and its sums are right."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mgray import cli
from mgray.bench import feed
from mgray.bench.clips import BenchVideos, pick_videos, store_videos, write_camera_videos
from mgray.bench.feed import CellCost, FeedBench, FeedResult, StepCost, bench_feed, cells_of, step_cost
from mgray.bench.feed_view import plot_feed, print_feed
from mgray.bench.pipeline import PipelineCost
from mgray.bench.readers import make_readers
from mgray.data.clip import VideoInfo, train_clip
from mgray.data.decode.encode import encode_frames
from mgray.errors import ConfigError, DataError
from mgray.plan import Plan
from tests.support.videos import moving, psnr, write_tree
from workloads import WORKLOADS

RUN = WORKLOADS["kinetics400_slowfast_r50"]()
PLAN = Plan.compile(RUN.plan, feed.NUM_SAMPLES)
INFOS = (VideoInfo(300, 340, 256, 30.0), VideoInfo(250, 256, 340, 25.0))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> BenchVideos:
    folder = str(tmp_path_factory.mktemp("feed"))
    return store_videos(folder, write_camera_videos(folder, 2, gop=12, frames=80), (256, 180, 128))


def test_cells_hold_clips_of_the_schedule() -> None:
    cells = cells_of(PLAN, INFOS, 9, RUN)
    assert [cell.name for cell in cells] == [
        "8x112", "8x158", "16x112", "16x158", "16x224", "32x112", "32x158", "32x224",
    ]  # fmt: skip
    assert sum(cell.share for cell in cells) == pytest.approx(1)
    steps = {}
    for index in np.linspace(0, PLAN.num_steps - 1, 3000).astype(int).tolist():
        step = PLAN.step_at(index)
        steps[step.shape.frames, step.shape.height] = step
    for cell in cells:
        assert len({spec.position for spec in cell.specs}) == 9
        assert {spec.sample for spec in cell.specs} == {0, 1}
        like = steps[cell.frames, cell.height]
        for spec in cell.specs:
            step = dataclasses.replace(like, first_position=spec.position)
            again = train_clip(
                step, spec.position, spec.sample, INFOS[spec.sample], seed=0, fps=RUN.data.fps, flip=RUN.data.flip
            )
            assert spec == again


def test_positions_belong_to_steps_of_the_cell() -> None:
    firsts = [phase.first_position for phase in PLAN.phases]
    for cell in cells_of(PLAN, INFOS, 4, RUN):
        for spec in cell.specs:
            phase = PLAN.phases[int(np.searchsorted(firsts, spec.position, side="right")) - 1]
            assert (cell.frames, cell.height) in {(batch.frames, batch.height) for batch in phase.batches}


def test_all_readers_give_the_same_clip(videos: BenchVideos) -> None:
    readers = make_readers(videos, 1.25)
    assert {"pyav", "files", "shards", "copy"} <= readers.by_name.keys()
    assert readers.by_name.keys() | readers.unavailable.keys() == set(feed_names())
    for cell in cells_of(PLAN, videos.infos, 2, RUN):
        for spec in cell.specs:
            clips = {}
            for name, read in readers.by_name.items():
                clips[name] = np.zeros((cell.frames, cell.height, cell.width, 3), np.uint8)
                read(spec, clips[name])
            for name in clips.keys() - {"copy", "files"}:
                assert psnr(clips[name], clips["files"]) > (24 if name == "shards" else 30), name


def feed_names() -> tuple[str, ...]:
    return ("pyav", "decord", "torchcodec", "files", "shards", "copy")


@pytest.mark.parametrize("module", ["decord", "torchcodec.decoders"])
def test_a_missing_library_is_told(videos: BenchVideos, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    readers = make_readers(videos, 1.25)
    assert name not in readers.by_name
    assert readers.unavailable[name].startswith("is not installed")


def test_storing_tells_bytes_and_leaves_out_what_does_not_decode(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    encode_frames(str(good), moving(20, 96, 64))
    bad.write_bytes(b"no video")
    stored = store_videos(str(tmp_path / "set"), [str(bad), str(good)], (64, 32), further=((32,),))
    assert stored.paths == (str(good),) and stored.source_bytes == good.stat().st_size
    assert [item.path for item in stored.broken] == [str(bad)]
    assert stored.ingest.keys() == {"64 32", "source", "32"}
    assert stored.level_bytes.keys() == {"64", "32"} and all(stored.level_bytes.values())
    assert stored.sources.is_passthrough and stored.shards.info("train", 0) == stored.infos[0]
    with pytest.raises(DataError, match="no video to measure on"):
        store_videos(str(tmp_path / "none"), [str(bad)], (64,))


def test_picked_videos_are_spread_over_the_training_split(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 5, "b": 5})
    picked = pick_videos(str(tmp_path), 4)
    assert len(picked) == len(set(picked)) == 4
    assert {Path(path).parent.name for path in picked} == {"a", "b"}
    assert len(pick_videos(str(tmp_path), 100)) == 8


def result(unavailable: str = "") -> FeedResult:
    """A made-up result: each reader takes a time that grows with the clip; `shards` is ten times as fast as `pyav`."""
    pace = {"pyav": 10.0, "torchcodec": 5.0, "files": 4.0, "shards": 1.0, "copy": 0.01}
    pace.pop(unavailable, None)
    cells = tuple(
        CellCost(
            name=cell.name, frames=cell.frames, size=cell.height, share=cell.share,
            seconds={name: value * cell.frames / 1000 for name, value in pace.items()},
            psnr_db={"shards": 35.0}, levels={"256": 1, "180": 0, "128": 0},
        )
        for cell in cells_of(PLAN, INFOS, 1, RUN)
    )  # fmt: skip
    steps = {name: step_cost(PLAN, cells, name) for name in pace}
    videos = BenchVideos.__new__(BenchVideos)
    for name, value in {
        "paths": ("a.mp4",), "infos": INFOS[:1], "source_bytes": 100, "ingest": {}, "broken": (), "sources": None,
        "shards": FakeShards(),
    }.items():  # fmt: skip
        object.__setattr__(videos, name, value)
    missing = {unavailable: "is not installed"} if unavailable else {}
    return FeedResult(bench=FeedBench(), rounds=3, cells=cells, steps=steps, unavailable=missing, videos=videos)


class FakeShards:
    """A manifest of one level of 250 bytes."""

    class manifest:
        class level:
            name = "256"

            class file:
                num_bytes = 250

            shards = (file,)

        levels = (level,)


def test_sums_follow_from_the_cells() -> None:
    found = result()
    tree = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert tree["ratio_over_pyav"] == pytest.approx(10)
    assert tree["ratio_over_torchcodec"] == pytest.approx(5)
    assert tree["ratio_over_decord"] is None
    assert tree["files_ratio_over_pyav"] == pytest.approx(2.5)
    assert tree["storage_ratio"] == 2.5
    clips = sum(phase.clips for phase in PLAN.phases)
    frames = sum(p.slot_steps[s] * b.clips * b.frames for p in PLAN.phases for s, b in enumerate(p.batches))
    assert tree["clips_per_s_per_core"]["shards"] == pytest.approx(1000 * clips / frames, rel=1e-3)
    mean = found.steps["shards"].mean
    assert mean * PLAN.num_steps == pytest.approx(frames / 1000)
    assert found.steps["shards"] == StepCost(mean=pytest.approx(mean), worst=pytest.approx(1024 * 8 / 1000))
    assert "torchcodec" not in result("torchcodec").to_json()["clips_per_s_per_core"]
    assert result("torchcodec").to_json()["ratio_over_torchcodec"] is None


def test_what_ray_adds_is_weighted_by_blocks() -> None:
    """Blocks have the same bytes, so that a grid has as many as its clips have voxels."""
    found = result()
    costs = {
        cell.name: PipelineCost(decoded_s=0.2, delivered_s=0.3 if cell.size == 224 else 0.2) for cell in found.cells
    }
    found = dataclasses.replace(found, pipelines=costs)
    voxels = [(cell.size, cell.share * cell.frames * cell.size**2) for cell in found.cells]
    large = sum(value for size, value in voxels if size == 224) / sum(value for _, value in voxels)
    assert found.ray_overhead == pytest.approx(0.5 * large)
    assert found.to_json()["ray"]["16x224"]["overhead"] == pytest.approx(0.5)
    assert result().to_json()["ray_overhead"] is None
    console = Console(record=True, width=200)
    print_feed(found, console)
    text = console.export_text()
    assert f"a Ray Data pipeline adds {50 * large:.0f} % to decoding (8x112 +0 %," in text and "16x224 +50 %" in text


def test_the_table_names_what_is_missing() -> None:
    console = Console(record=True, width=120)
    print_feed(result("torchcodec"), console)
    text = console.export_text()
    assert "shards: 10.0x PyAV; files: 2.5x PyAV" in text
    assert "torchcodec is left out: is not installed" in text
    assert all(name in text for name in ("8x112", "32x224", "the schedule", "storage: 2.50x"))


def test_the_picture_can_be_drawn(tmp_path: Path) -> None:
    plot_feed(result(), tmp_path / "new" / "feed.png")
    with Image.open(tmp_path / "new" / "feed.png") as picture:
        assert picture.size == (1425, 750)
    with pytest.raises(ConfigError, match="plot = "):
        plot_feed(result(), tmp_path / "feed.bmp")


def test_the_command_prints_only_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        encode_frames(str(tmp_path / "a" / f"{number}.mp4"), moving(24, 96, 64, seed=number))
    monkeypatch.setattr(
        FeedBench, "quick", lambda self: dataclasses.replace(self, videos=1, clips=1, rounds=1, further=False)
    )
    picture = tmp_path / "feed.png"
    arguments = ["--data", str(tmp_path), "--spans", "kept", "--json", "--plot", str(picture)]
    assert cli.main(["bench", "feed", "--quick", *arguments]) == 0
    tree = json.loads(capfd.readouterr().out)
    assert tree["spans"] == "kept" and tree["ratio_over_pyav"] > 0 and picture.is_file()
    assert len(tree["cells"]) == 8
    assert tree["cpu_seconds_per_global_step"]["shards"]["worst_over_mean"] >= 1
    for name, reason in tree["unavailable"].items():
        assert name in ("decord", "torchcodec") and reason


def test_no_round_begins_after_the_budget(tmp_path: Path) -> None:
    encode_frames(str(tmp_path / "0.mp4"), moving(12, 48, 32))
    encode_frames(str(tmp_path / "1.mp4"), moving(12, 48, 32, seed=1))
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,split\n0.mp4,a,train\n1.mp4,a,val\n")
    found = bench_feed(FeedBench(data=str(listed), clips=1, rounds=9, further=False, budget_s=0.0))
    assert found.rounds == 1 and found.bench.rounds == 9
