"""The manifest of a dataset: what `mgray ingest` made, from what, with what settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from mgray.data.storage import FileSum, Folder, unreadable
from mgray.errors import DataError

FORMAT = "mgray-shards"
VERSION = 2
MULTI_LABEL_VERSION = 3
"""Of datasets whose videos have any number of classes each; the index then has `labels`, `starts_s` and `ends_s`."""
MANIFEST = "manifest.json"
SOURCE = (0,)
"""The levels of passed-through sources."""


def level_name(short_side: int) -> str:
    """The folder of a level's shards."""
    return str(short_side) if short_side else "source"


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One stored resolution: the short side in pixels of videos that are at least as large, and its shards in order.

    Short side 0 is the source's own resolution: its packets as they are, in the source files (passthrough).
    """

    short_side: int
    shards: tuple[FileSum, ...]

    @property
    def name(self) -> str:
        return level_name(self.short_side)


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A video that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an ingested dataset holds; `source_digest` identifies the list of videos and the settings it was made from."""

    version: int
    source: str
    source_digest: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    """Videos per split."""
    levels: tuple[Level, ...]
    """From the finest to the coarsest."""
    codec: Mapping[str, str]
    index: FileSum
    content_digest: str
    """SHA-256 of classes, samples, labels, levels and codec: equal for equal training data."""
    broken: tuple[Broken, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether videos have any number of classes each."""
        return self.version == MULTI_LABEL_VERSION

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, path: str) -> Manifest:
        """The manifest that `to_json` wrote; `path` is for messages.

        Raises:
            DataError: it is no manifest, or of a version that this code does not know.
        """
        remedy = "ingest the videos again with this version of mgray"
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise DataError("data.path", path, f"its {MANIFEST} is no JSON ({error})", remedy) from None
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
            raise DataError("data.path", path, f"its {MANIFEST} does not describe mgray shards", remedy)
        if tree.get("version") not in (VERSION, MULTI_LABEL_VERSION):
            raise DataError(
                "data.path", path, f"its shards have version {tree.get('version')!r}, this code reads {VERSION} and {MULTI_LABEL_VERSION}",
                remedy,
            )  # fmt: skip
        try:
            levels = [
                Level(short_side=level["short_side"], shards=tuple(FileSum(**shard) for shard in level["shards"]))
                for level in tree.pop("levels")
            ]
            return cls(
                classes=tuple(tree.pop("classes")),
                levels=tuple(levels),
                index=FileSum(**tree.pop("index")),
                broken=tuple(Broken(**item) for item in tree.pop("broken")),
                **tree,
            )
        except (KeyError, TypeError) as error:
            raise DataError("data.path", path, f"its {MANIFEST} lacks or misnames a field ({error})", remedy) from None


def read_manifest_text(folder: Folder, path: str) -> str:
    """The content of the manifest in a folder; `path` is for messages.

    Raises:
        DataError: there is no such folder, no manifest in it, or no answer.
    """
    try:
        return str(folder.read(MANIFEST).to_pybytes().decode())
    except FileNotFoundError:
        problem, remedy = f"holds no {MANIFEST}", "make shards of your videos with mgray ingest"
    except UnicodeDecodeError as error:
        problem, remedy = f"its {MANIFEST} is no text ({error})", "ingest the videos again with this version of mgray"
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        if not folder.exists():
            problem, remedy = "is no folder", "check the path"
            bucket = folder.path.partition("/")[0]
            if not folder.is_local and not Folder(folder.fs, bucket).exists():
                problem = f"its bucket {bucket} does not exist"
    except OSError as error:
        raise unreadable(path, error) from None
    raise DataError("data.path", path, problem, remedy)
