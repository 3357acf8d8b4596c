"""The manifest of a dataset."""

from mgray.data.shards.manifest import MANIFEST, Manifest
from mgray.data.shards.writer import shard_name
from tests.unit.data.shards.support import SIDE


def test_the_manifest_round_trips(root):
    text = (root / MANIFEST).read_text()
    manifest = Manifest.from_json(text, str(root))
    assert manifest.to_json() == text
    assert manifest.levels[0].shards[1].num_bytes == (root / shard_name(str(SIDE), 1)).stat().st_size
