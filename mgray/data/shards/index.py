"""The index of a dataset: one row per video, and how it is written and read."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mgray.data.annotations import Action
from mgray.data.shards.integrity import damaged, whole_file
from mgray.data.storage import FileSum, Folder, one_line

INDEX = "index.arrow"
SPLITS = ("train", "val")
_ACTION_COLUMNS = (
    ("labels", "label", pa.int32()),
    ("starts_s", "start_s", pa.float64()),
    ("ends_s", "end_s", pa.float64()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """The place of a video's record batch in a shard file (bytes); length 0 where the level does not hold the video."""

    offset: int
    head: int
    """Bytes before the packets."""
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceProbe:
    """What kind of file a video came from."""

    codec: str
    pixel_format: str
    rotation: int
    """Degrees that its frames are turned by, counter-clockwise."""
    full_range: bool
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """A video's row of the index; `extents` are its places at each level, all in shards of number `shard`."""

    split: str
    path: str
    label: int
    """-1 in a multi-label dataset."""
    group: str
    num_frames: int
    width: int
    height: int
    fps: float
    probe: SourceProbe
    shard: int
    extents: tuple[Extent, ...]
    actions: tuple[Action, ...] = ()
    """What it shows and when, in a multi-label dataset."""


def write_index(
    folder: Folder, rows: Sequence[IndexRow], levels: Sequence[str], *, multi_label: bool = False
) -> FileSum:
    """Write the index of `rows`, whose training videos come before the validation videos."""

    def column(name: str, kind: pa.DataType, of: str = "") -> pa.Array:
        return pa.array([getattr(getattr(row, of) if of else row, name) for row in rows], kind)

    columns = {
        "split": column("split", pa.string()),
        "path": column("path", pa.string()),
        "group": column("group", pa.string()),
        "label": column("label", pa.int32()),
        "num_frames": column("num_frames", pa.int32()),
        "width": column("width", pa.int32()),
        "height": column("height", pa.int32()),
        "fps": column("fps", pa.float64()),
        "codec": column("codec", pa.string(), "probe"),
        "pixel_format": column("pixel_format", pa.string(), "probe"),
        "rotation": column("rotation", pa.int32(), "probe"),
        "full_range": column("full_range", pa.bool_(), "probe"),
        "num_bytes": column("num_bytes", pa.int64(), "probe"),
        "shard": column("shard", pa.int32()),
    }
    for number, level in enumerate(levels):
        for field in ("offset", "head", "length"):
            columns[f"{field}_{level}"] = pa.array([getattr(row.extents[number], field) for row in rows], pa.int64())
    if multi_label:
        for name, field, kind in _ACTION_COLUMNS:
            values = [[getattr(action, field) for action in row.actions] for row in rows]
            columns[name] = pa.array(values, pa.list_(kind))
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return folder.write(INDEX, sink.getvalue())


def content_digest(
    classes: Sequence[str], rows: Sequence[IndexRow], levels: Sequence[str], codec: Mapping[str, str]
) -> str:
    """SHA-256 of what is trained on, whatever the number of shards and wherever they lie."""
    digest = hashlib.sha256(json.dumps([list(classes), list(levels), dict(sorted(codec.items()))]).encode())
    for row in rows:
        sample: list[Any] = [row.split, row.path, row.label, row.num_frames, row.width, row.height, row.fps]
        if row.actions:
            sample.append([[action.label, action.start_s, action.end_s] for action in row.actions])
        digest.update(json.dumps(sample).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class IndexedActions:
    """The actions of all videos, one after the other: those of video i are first[i] to first[i + 1]."""

    first: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The columns that training needs; row i is video i, training videos first."""

    path: pa.Array
    group: pa.Array
    label: npt.NDArray[np.int32]
    num_frames: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    shard: npt.NDArray[np.int32]
    offset: tuple[npt.NDArray[np.int64], ...]
    """Per level, as the two below."""
    head: tuple[npt.NDArray[np.int64], ...]
    length: tuple[npt.NDArray[np.int64], ...]
    actions: IndexedActions | None
    """In a multi-label dataset."""


def index_table(root: str, file: FileSum) -> pa.Table:
    """All columns of the index.

    Raises:
        DataError: its file is missing or damaged.
    """
    try:
        return pa.ipc.open_file(whole_file(Folder.of(root), root, file)).read_all()
    except pa.ArrowException as error:
        raise damaged(root, file, one_line(error)) from None


@functools.lru_cache(maxsize=4)
def read_index(root: str, file: FileSum, levels: tuple[str, ...]) -> Index:
    """The index of the dataset under `root`; a process reads it once.

    Raises:
        DataError: as `index_table`.
    """
    table = index_table(root, file).combine_chunks()
    try:
        names = ("label", "num_frames", "width", "height", "fps", "shard")
        numbers: dict[str, Any] = {name: table[name].to_numpy() for name in names}
        places: dict[str, Any] = {
            field: tuple(table[f"{field}_{level}"].to_numpy() for level in levels)
            for field in ("offset", "head", "length")
        }
        actions = _actions_of(table) if "labels" in table.column_names else None
        return Index(path=table["path"], group=table["group"], **numbers, **places, actions=actions)
    except KeyError as error:
        raise damaged(root, file, str(error)) from None


def _actions_of(table: pa.Table) -> IndexedActions:
    label, start_s, end_s = (table[name].combine_chunks() for name, _, _ in _ACTION_COLUMNS)
    return IndexedActions(
        first=label.offsets.to_numpy(),
        label=label.values.to_numpy(),
        start_s=start_s.values.to_numpy(),
        end_s=end_s.values.to_numpy(),
    )
