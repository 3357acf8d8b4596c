"""The index of a dataset."""

from dataclasses import replace

from mgray.data.shards.index import Extent, IndexRow, write_index
from mgray.data.storage import Folder
from tests.unit.data.shards.support import PROBE


def test_an_index_of_many_videos_is_small_and_fast(tmp_path):
    row = IndexRow(
        split="train", path="", label=3, group="", num_frames=300, width=340, height=256, fps=30.0, probe=PROBE,
        shard=7, extents=(Extent(offset=9, head=2, length=5),) * 3,
    )  # fmt: skip
    rows = [replace(row, path=f"class/{i:07d}.mp4", group=f"class/{i:07d}.mp4") for i in range(20_000)]
    file = write_index(Folder.of(str(tmp_path)), rows, ["256", "180", "128"])
    assert file.num_bytes < 200 * len(rows)
