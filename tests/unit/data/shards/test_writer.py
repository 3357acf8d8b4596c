"""Shard files."""

import pyarrow as pa

from mgray.data.shards.packets import StoredVideo
from mgray.data.shards.writer import shard_name
from tests.unit.data.shards.support import SIDE, same


def test_shards_are_files_that_arrow_reads(root, videos):
    with pa.ipc.open_file(str(root / shard_name(str(SIDE), 1))) as reader:
        assert reader.num_record_batches == 3
        assert same(StoredVideo.from_batch(reader.get_batch(2)), videos[5])
