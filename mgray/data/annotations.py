"""Annotations: which videos there are, their labels, and on which side of the split each is.

A source is a folder of videos (`root/[split/]class/clip.ext`), a list, or a folder that holds `annotations.csv`, `train.csv` and
`val.csv`, or the lists of a published dataset (mgray.data.published). Lists are CSV (`path,label[,split,group]`, with or without a
header, further columns ignored) or, as for Kinetics, `path label` separated by a space. `test`, `val`, `valid`, `validate` and
`validation` all mean the validation split, "val". Each may lie in an object store: its folder is then listed once, with all that is
below it.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mgray.data.files import Files, RemoteFiles, all_files, files_of
from mgray.data.listing import SPLIT_NAMES, VIDEO_ENDINGS, Entry, Listing, is_video, text_of
from mgray.data.published import published
from mgray.data.storage import unreadable
from mgray.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

LIST_NAME = "annotations.csv"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """A class, an index into the classes, that a video shows from `start_s` to `end_s` (seconds, both included)."""

    label: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A video: `path` as the source names it, `label` an index into the classes, `split` "train" or "val"."""

    path: str
    label: int
    """-1 in a multi-label source."""
    split: str
    group: str
    """Videos of one group (a speaker, a court) are never on both sides of the split."""
    actions: tuple[Action, ...] = ()
    """What it shows and when, in a multi-label source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """The videos of a source, training before validation, each sorted by path; relative paths count from `root`."""

    root: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    multi_label: bool = False
    """Videos have any number of classes each, for a part of the video."""
    remote_bytes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the videos by their paths, where they lie in an object store."""

    def locate(self, sample: Sample) -> str:
        """Where the video of a sample is."""
        return os.path.join(self.root, sample.path)


def read_annotations(source: str, *, val_fraction: float = 0.2, videos: str = "") -> Annotations:
    """The annotations of a folder of videos or of a list.

    Args:
        source: the folder or the list, local or an address such as s3://bucket/videos.
        val_fraction: share of each class that is held out where the source names no split.
        videos: the folder that the videos of a list lie in; without it, that of the list, or of all the lists.

    Raises:
        DataError: there is no such source, it holds no videos, or it contradicts itself.
    """
    try:
        files, path = files_of(source)
        places, root = files_of(videos) if videos else (files, "")
        if videos and not places.is_folder(root):
            raise DataError("data.videos", videos, "is no folder", "give the folder that the videos lie in")
        found = _read(files, path, val_fraction, places, root)
    except OSError as error:
        raise unreadable(next((path for path in (source, videos) if "://" in path), source), error) from None
    if isinstance(places, RemoteFiles):
        return replace(found, remote_bytes={s.path: places.num_bytes(found.locate(s)) for s in found.samples})
    return found


def _read(files: Files, source: str, val_fraction: float, places: Files, root: str) -> Annotations:
    """The annotations of a source in `files`, whose videos lie in `places` under `root`."""
    is_folder = files.is_folder(source)
    if not is_folder and not files.is_file(source):
        raise DataError(
            "data.path", source, "does not exist", "give a folder of videos (class/clip.mp4) or a list (path,label)"
        )
    lists = [] if is_folder else [("", source)]
    listing = None if is_folder and files.is_file(os.path.join(source, LIST_NAME)) else published(files, source)
    if listing is None and is_folder:
        lists = _lists_in(files, source)
        if not lists:
            return _annotations(
                source, source, Listing(form="", entries=tuple(_folder_entries(files, source))), val_fraction
            )
    root = root or (source if is_folder else os.path.dirname(source) or ".")
    if listing is None:
        entries = [
            replace(entry, split=split or entry.split)
            for split, listed in lists
            for entry in _list_entries(files, listed)
        ]
        missing = places.missing(root, [entry.path for entry in entries])
        remedy = "correct the paths, which count from the list's folder, or take the lines out"
        listing = Listing(form="", entries=tuple(entries))
    else:
        listing, missing = _located(listing, places, root)
        remedy = f"give their folder as videos (these are {listing.form}), or take the lines out"
    if missing:
        raise DataError(
            "data.path", source, f"lists {_count(missing, 'file')} that cannot be found under {root}: {_first(missing)}",
            remedy,
        )  # fmt: skip
    return _annotations(source, root, listing, val_fraction)


def _located(listing: Listing, places: Files, root: str) -> tuple[Listing, list[str]]:
    """A listing with the paths of its videos from `root`, wherever below it they are; and which are nowhere."""
    paths_of: dict[str, list[str]] = defaultdict(list)
    for path in all_files(places, root):
        if is_video(path):
            paths_of[os.path.splitext(os.path.basename(path))[0]].append(path)
    entries, missing, lines = [], [], dict[str, str]()
    for entry in listing.entries:
        found = [
            path for path in paths_of.get(os.path.basename(entry.path), ())
            if f"/{os.path.splitext(path)[0]}".endswith(f"/{entry.path}")
        ]  # fmt: skip
        if len(found) > 1:
            raise DataError(
                "data.path", entry.path, f"of {entry.place} is at {len(found)} places under {root}: {_first(found)}",
                "keep one, or give the folder of those that are meant as videos",
            )  # fmt: skip
        if not found:
            missing.append(f"{entry.path} ({entry.place})")
            continue
        earlier = lines.setdefault(found[0], entry.place)
        if earlier != entry.place:
            raise DataError("data.path", entry.path, f"of {entry.place} is the video of {earlier} too", "take one out")
        entries.append(replace(entry, path=found[0]))
    return replace(listing, entries=tuple(entries)), missing


def _annotations(source: str, root: str, listing: Listing, val_fraction: float) -> Annotations:
    entries = listing.entries
    if not entries:
        raise DataError("data.path", source, "holds no videos", f"use files that end in {' '.join(VIDEO_ENDINGS)}")
    if any(entry.split for entry in entries):
        _check_split(source, entries)
    else:
        held_out = hold_out([(entry.label, entry.group) for entry in entries], val_fraction)
        entries = tuple(
            replace(entry, split="val" if held else "train") for entry, held in zip(entries, held_out, strict=True)
        )
    classes = listing.classes or _sorted_classes({entry.label for entry in entries})
    labels = {name: index for index, name in enumerate(classes)}
    samples = [
        Sample(
            path=entry.path,
            label=-1 if listing.multi_label else labels[entry.label],
            split=entry.split,
            group=entry.group,
            actions=tuple(Action(label=labels[a.name], start_s=a.start_s, end_s=a.end_s) for a in entry.actions),
        )
        for entry in entries
    ]
    samples.sort(key=lambda sample: (sample.split, sample.path))
    return Annotations(root=root, classes=classes, samples=tuple(samples), multi_label=listing.multi_label)


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    numeric = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))


def _check_split(source: str, entries: Sequence[Entry]) -> None:
    sides: dict[str, set[str]] = {}
    for entry in entries:
        names = {action.name for action in entry.actions} or {entry.label} - {""}
        sides.setdefault(entry.split, set()).update(names)
    for side, other in (("train", "validation"), ("val", "training")):
        if side not in sides:
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


def _folder_entries(files: Files, root: str) -> list[Entry]:
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


def _class_entries(files: Files, root: str, inner: str, split: str) -> list[Entry]:
    entries: list[Entry] = []
    empty = []
    for label in _subfolders(files, os.path.join(root, inner)):
        folder = f"{inner}/{label}" if inner else label
        names = [name for name in files.children(os.path.join(root, folder))[1] if is_video(name)]
        entries += [Entry(f"{folder}/{name}", label, split, f"{folder}/{name}") for name in names]
        if not names:
            empty.append(folder)
    if empty and entries:
        raise DataError(
            "data.path", root, f"has {_count(empty, 'class folder')} without a video: {_first(empty)}",
            "add videos, or remove the folder",
        )  # fmt: skip
    return entries


def _subfolders(files: Files, path: str) -> list[str]:
    return [name for name in files.children(path)[0] if not name.startswith(".")]


def _lists_in(files: Files, folder: str) -> list[tuple[str, str]]:
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


def _list_entries(files: Files, path: str) -> list[Entry]:
    lines = text_of(files, path).split("\n")
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
    return "," in line and not (" " in line and is_video(line.rsplit(None, 1)[0]))


def _space_rows(path: str, lines: Iterable[str]) -> list[tuple[int, Entry]]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(None, 1)
        if len(fields) < 2:
            raise _malformed(path, number, "is not of the form: path label")
        rows.append((number, Entry(fields[0], fields[1], "", fields[0])))
    return rows


def _csv_rows(path: str, lines: Iterable[str]) -> list[tuple[int, Entry]]:
    reader = csv.reader(lines)
    columns = {"path": 0, "label": 1, "split": 2, "group": 3}
    rows: list[tuple[int, Entry]] = []
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
        rows.append((reader.line_num, Entry(values["path"], values["label"], split, group)))
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
