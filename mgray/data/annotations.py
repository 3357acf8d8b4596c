"""Annotations: which videos there are, their labels, and on which side of the split each is.

A source is a folder of videos (`root/[split/]class/clip.ext`), a list, or a folder that holds `annotations.csv`, or
`train.csv` and `val.csv`. Lists are CSV (`path,label[,split,group]`, with or without a header, further columns ignored)
or, as for Kinetics, `path label` separated by a space. `test`, `val`, `valid` and `validation` all mean the validation
split, "val". Each may lie in an object store: its folder is then listed once, with all that is below it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import pyarrow.fs as pafs

from mgray.data.storage import Folder, unreadable
from mgray.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

VIDEO_ENDINGS = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val",
}  # fmt: skip
LIST_NAME = "annotations.csv"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A video: `path` as the source names it, `label` an index into the classes, `split` "train" or "val"."""

    path: str
    label: int
    split: str
    group: str
    """Videos of one group (a speaker, a court) are never on both sides of the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """The videos of a source, training before validation, each sorted by path; relative paths count from `root`."""

    root: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    remote_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the videos by their paths, where they lie in an object store."""

    def locate(self, sample: Sample) -> str:
        """Where the video of a sample is."""
        return os.path.join(self.root, sample.path)


class _Files(Protocol):
    def is_file(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool: ...

    def children(self, path: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder, sorted."""

    def read(self, path: str) -> bytes: ...


class _LocalFiles:
    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def children(self, path: str) -> tuple[list[str], list[str]]:
        with os.scandir(path) as found:
            items = sorted(found, key=lambda item: item.name)
        return [item.name for item in items if item.is_dir()], [item.name for item in items if item.is_file()]

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()


class _RemoteFiles:
    """What lies below an address, or beside it where it is a file; paths are addresses without user and options."""

    def __init__(self, address: str) -> None:
        folder = Folder.of(address)
        self._scheme = address.partition("://")[0] + "://"
        self._fs = folder.fs
        self.source = self._scheme + folder.path
        is_list = self._fs.get_file_info(folder.path).type == pafs.FileType.File
        base = folder.path.rpartition("/")[0] if is_list else folder.path
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=True)
        found = self._fs.get_file_info(selector)
        self._bytes: dict[str, int] = {info.path: info.size for info in found if info.type == pafs.FileType.File}
        self._children: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        for path in self._bytes:
            parent, _, name = path.rpartition("/")
            self._children[parent][1].add(name)
            while parent != base:
                parent, _, name = parent.rpartition("/")
                self._children[parent][0].add(name)

    def is_file(self, path: str) -> bool:
        return self._inner(path) in self._bytes

    def is_folder(self, path: str) -> bool:
        return self._inner(path) in self._children

    def children(self, path: str) -> tuple[list[str], list[str]]:
        folders, files = self._children[self._inner(path)]
        return sorted(folders), sorted(files)

    def read(self, path: str) -> bytes:
        with self._fs.open_input_file(self._inner(path)) as file:
            return bytes(file.read())

    def num_bytes(self, path: str) -> int:
        return self._bytes[self._inner(path)]

    def _inner(self, path: str) -> str:
        return posixpath.normpath(path.removeprefix(self._scheme))


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    label: str
    split: str
    group: str


def read_annotations(source: str, *, val_fraction: float = 0.2, root: str = "") -> Annotations:
    """The annotations of a folder of videos or of a list.

    Args:
        source: the folder or the list, local or an address such as s3://bucket/videos.
        val_fraction: share of each class that is held out where the source names no split.
        root: what relative paths of a list count from; the list's folder without it.

    Raises:
        DataError: there is no such source, it holds no videos, or it contradicts itself.
    """
    if "://" not in source:
        return _read(_LocalFiles(), os.path.expanduser(source), val_fraction, root)
    try:
        files = _RemoteFiles(source)
        found = _read(files, files.source, val_fraction, root)
    except OSError as error:
        raise unreadable(source, error) from None
    return replace(found, remote_bytes={s.path: files.num_bytes(found.locate(s)) for s in found.samples})


def _read(files: _Files, source: str, val_fraction: float, root: str) -> Annotations:
    if files.is_folder(source):
        lists = _lists_in(files, source)
        root = root or source
        if not lists:
            return _annotations(source, source, _folder_entries(files, source), val_fraction)
    elif files.is_file(source):
        lists = [("", source)]
        root = root or os.path.dirname(source) or "."
    else:
        raise DataError(
            "data.path", source, "does not exist", "give a folder of videos (class/clip.mp4) or a list (path,label)"
        )
    entries = [
        replace(entry, split=split or entry.split) for split, listed in lists for entry in _list_entries(files, listed)
    ]
    missing = [entry.path for entry in entries if not files.is_file(os.path.join(root, entry.path))]
    if missing:
        raise DataError(
            "data.path", source, f"lists {_count(missing, 'file')} that cannot be found under {root}: {_first(missing)}",
            "correct the paths, which count from the list's folder, or take the lines out",
        )  # fmt: skip
    return _annotations(source, root, entries, val_fraction)


def _annotations(source: str, root: str, entries: Sequence[_Entry], val_fraction: float) -> Annotations:
    if not entries:
        raise DataError("data.path", source, "holds no videos", f"use files that end in {' '.join(VIDEO_ENDINGS)}")
    if any(entry.split for entry in entries):
        _check_split(source, entries)
    else:
        held_out = hold_out([(entry.label, entry.group) for entry in entries], val_fraction)
        entries = [
            replace(entry, split="val" if held else "train") for entry, held in zip(entries, held_out, strict=True)
        ]
    names = {entry.label for entry in entries}
    numeric = all(name.isascii() and name.isdigit() for name in names)
    classes = tuple(sorted(names, key=int) if numeric else sorted(names))
    labels = {name: index for index, name in enumerate(classes)}
    samples = [
        Sample(path=entry.path, label=labels[entry.label], split=entry.split, group=entry.group) for entry in entries
    ]
    samples.sort(key=lambda sample: (sample.split, sample.path))
    return Annotations(root=root, classes=classes, samples=tuple(samples))


def _check_split(source: str, entries: Sequence[_Entry]) -> None:
    sides = {side: {entry.label for entry in entries if entry.split == side} for side in ("train", "val")}
    for side, other in (("train", "validation"), ("val", "training")):
        if not sides[side]:
            raise DataError(
                "data.path", source, f"names a split that has {other} videos only",
                "add the other side, or name no split so that part of the videos is held out",
            )  # fmt: skip
    unseen = sorted(sides["val"] - sides["train"])
    if unseen:
        raise DataError(
            "data.path", source, f"has {_count(unseen, 'class', 'classes')} in validation only: {_first(unseen)}",
            "add training videos, or take the class out",
        )  # fmt: skip


def hold_out(items: Sequence[tuple[str, str]], val_fraction: float) -> list[bool]:
    """Which of the items (label, group) are held out: whole groups, about `val_fraction` of each label.

    Groups are taken in the order of their hash, as long as that brings the labels closer to their share on the whole. Each
    label keeps at least one group in training, and gets one in validation if the groups allow it.
    """
    of_group: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in items:
        of_group[group][label] += 1
    totals = Counter(label for label, _ in items)
    in_training = Counter(label for labels in of_group.values() for label in labels)
    deficit = {label: val_fraction * total for label, total in totals.items()}
    order = sorted(of_group, key=lambda group: (hashlib.sha256(group.encode()).digest(), group))
    held: set[str] = set()

    def spared(group: str) -> bool:
        return all(in_training[label] > 1 for label in of_group[group])

    def take(group: str) -> None:
        held.add(group)
        for label, count in of_group[group].items():
            in_training[label] -= 1
            deficit[label] -= count

    for group in order:
        gain = sum(abs(deficit[label]) - abs(deficit[label] - count) for label, count in of_group[group].items())
        if gain > 0 and spared(group):
            take(group)
    groups_of: dict[str, list[str]] = defaultdict(list)
    for group in order:
        for label in of_group[group]:
            groups_of[label].append(group)
    for label in sorted(totals):
        if held.isdisjoint(groups_of[label]):
            candidate = next((group for group in groups_of[label] if spared(group)), None)
            if candidate is not None:
                take(candidate)
    return [group in held for _, group in items]


def _folder_entries(files: _Files, root: str) -> list[_Entry]:
    """The videos of `root/[split/]class/clip.ext`."""
    folders = _subfolders(files, root)
    splits = [name for name in folders if name.lower() in SPLIT_NAMES and _subfolders(files, os.path.join(root, name))]
    if not splits:
        return _class_entries(files, root, "", "")
    others = sorted(set(folders) - set(splits))
    if others:
        raise DataError(
            "data.path", root, f"holds split folders ({', '.join(splits)}) beside {_first(others)}",
            "put all classes into split folders, or none",
        )  # fmt: skip
    return [entry for name in splits for entry in _class_entries(files, root, name, SPLIT_NAMES[name.lower()])]


def _class_entries(files: _Files, root: str, inner: str, split: str) -> list[_Entry]:
    entries: list[_Entry] = []
    empty = []
    for label in _subfolders(files, os.path.join(root, inner)):
        folder = f"{inner}/{label}" if inner else label
        names = [name for name in files.children(os.path.join(root, folder))[1] if _is_video(name)]
        entries += [_Entry(f"{folder}/{name}", label, split, f"{folder}/{name}") for name in names]
        if not names:
            empty.append(folder)
    if empty and entries:
        raise DataError(
            "data.path", root, f"has {_count(empty, 'class folder')} without a video: {_first(empty)}",
            "add videos, or remove the folder",
        )  # fmt: skip
    return entries


def _subfolders(files: _Files, path: str) -> list[str]:
    return [name for name in files.children(path)[0] if not name.startswith(".")]


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_ENDINGS) and not name.startswith(".")


def _lists_in(files: _Files, folder: str) -> list[tuple[str, str]]:
    """The lists in a folder, with the split that each stands for: one list of all, or one for each side."""
    whole = os.path.join(folder, LIST_NAME)
    if files.is_file(whole):
        return [("", whole)]
    sides: dict[str, str] = {}
    for name, split in SPLIT_NAMES.items():
        path = os.path.join(folder, f"{name}.csv")
        if files.is_file(path):
            sides.setdefault(split, path)
    return sorted(sides.items())


def _list_entries(files: _Files, path: str) -> list[_Entry]:
    try:
        lines = files.read(path).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise DataError("data.path", path, "is no text in UTF-8", "give a folder of videos or a list") from None
    first = next((line for line in lines if line.strip()), "")
    rows = _csv_rows(path, lines) if _is_csv(first) else _space_rows(path, lines)
    lines_of: dict[str, int] = {}
    entries = []
    for number, entry in rows:
        earlier = lines_of.setdefault(os.path.normpath(entry.path), number)
        if earlier != number:
            raise _malformed(path, number, f"repeats the video of line {earlier}")
        entries.append(entry)
    unsplit = sum(not entry.split for entry in entries)
    if 0 < unsplit < len(entries):
        number = next(number for number, entry in rows if not entry.split)
        raise _malformed(path, number, f"names no split, as {unsplit} of {len(entries)} lines")
    return entries


def _is_csv(line: str) -> bool:
    """Whether a list is CSV, by its first line; a comma inside the path of a Kinetics list does not make it one."""
    return "," in line and not (" " in line and _is_video(line.rsplit(None, 1)[0]))


def _space_rows(path: str, lines: Iterable[str]) -> list[tuple[int, _Entry]]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(None, 1)
        if len(fields) < 2:
            raise _malformed(path, number, "is not of the form: path label")
        rows.append((number, _Entry(fields[0], fields[1], "", fields[0])))
    return rows


def _csv_rows(path: str, lines: Iterable[str]) -> list[tuple[int, _Entry]]:
    reader = csv.reader(lines)
    columns = {"path": 0, "label": 1, "split": 2, "group": 3}
    rows: list[tuple[int, _Entry]] = []
    for index, fields in enumerate(_filled(path, reader)):
        names = [field.strip().lower() for field in fields]
        if index == 0 and {"path", "label"} <= set(names):
            columns = {name: names.index(name) for name in columns if name in names}
            continue
        values = {name: fields[at].strip() if at < len(fields) else "" for name, at in columns.items()}
        if not values["path"] or not values["label"]:
            raise _malformed(path, reader.line_num, "lacks a path or a label")
        named = values.get("split", "").lower()
        if named and named not in SPLIT_NAMES:
            raise _malformed(
                path, reader.line_num, f"has the unknown split {values['split']!r} (one of {', '.join(SPLIT_NAMES)})"
            )
        split = SPLIT_NAMES[named] if named else ""
        group = values.get("group") or values["path"]
        rows.append((reader.line_num, _Entry(values["path"], values["label"], split, group)))
    return rows


def _filled(path: str, reader: Reader) -> Iterator[list[str]]:
    """The rows that are not blank."""
    try:
        yield from (fields for fields in reader if any(field.strip() for field in fields))
    except csv.Error as error:
        raise _malformed(path, reader.line_num, f"is no CSV ({error})") from None


def _malformed(path: str, line: int, problem: str) -> DataError:
    return DataError("data.path", path, f"line {line} {problem}", "write path,label[,split,group] or: path label")


def _count(names: Sequence[str], singular: str, plural: str = "") -> str:
    return f"{len(names)} {singular if len(names) == 1 else plural or singular + 's'}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
