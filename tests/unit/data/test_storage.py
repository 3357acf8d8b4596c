"""Files of a dataset: written whole, read in ranges."""

import numpy as np
import pytest

from mgray.data.storage import Folder, LocalFile


def test_writing_leaves_only_whole_files(tmp_path):
    folder = Folder.of(str(tmp_path))
    folder.write("a/b.bin", b"one")
    assert folder.write("a/b.bin", b"two").num_bytes == 3
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]
    with pytest.raises(FileNotFoundError):
        folder.read("a/c.bin")
    assert folder.names() == ["a"] and Folder.of(str(tmp_path / "none")).names() == []


def test_a_local_file_is_read_in_ranges(tmp_path) -> None:  # type: ignore[no-untyped-def]
    content = np.random.default_rng(0).integers(1, 255, 100_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    target = np.zeros(90_000, np.uint8)
    LocalFile(str(tmp_path / "file")).read_into(target, 10_000, [(0, 10), (100, 200), (50_000, 90_000)])
    assert np.array_equal(target[:200], content[10_000:10_200]) and np.array_equal(target[50_000:], content[60_000:])
    assert not target[200:50_000].any()
    with pytest.raises(EOFError, match="10 bytes too soon"):
        LocalFile(str(tmp_path / "file")).read_into(target, 10_010, [(0, 90_000)])
