"""Lists of published datasets, as they are distributed; which one it is, is told from the files' names and heads.

    Kinetics        train.csv, val.csv: label,youtube_id,time_start,time_end,split; videos ID_000010_000020.mp4
    Something v2    something-something-v2-train.json, -validation.json and -labels.json (or without the prefix); videos ID.webm
    Charades        Charades_v1_train.csv, Charades_v1_test.csv, Charades_v1_classes.txt; videos ID.mp4, several classes each
                    or PySlowFast's frame lists, train.csv and val.csv: original_vido_id video_id frame_id path labels, 24 frames a second
    UCF101          classInd.txt, trainlist01.txt, testlist01.txt; videos Class/v_Class_g01_c01.avi
    HMDB51          class_test_split1.txt of each class; videos class/name.avi

The lists lie in the source's folder or in one right below it, or one of them is the source; it then says which split is meant.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mgray.data.files import Files
from mgray.data.listing import SPLIT_NAMES, Entry, Listing, NamedAction, text_of
from mgray.errors import DataError

_KINETICS = frozenset({"label", "youtube_id", "time_start", "time_end"})
_KINETICS_SIDES = re.compile(r"(?:.*[_-])?(train|val|valid|validate|validation|test)\.csv", re.IGNORECASE)
_CHARADES = re.compile(r"Charades_v1_(train|test)\.csv")
_SOMETHING = re.compile(r"((?:.*-)?)(train|validation|labels)\.json")
_FRAMES_HEAD = "original_vido_id "
_FRAMES_PER_S = 24.0
_UCF = re.compile(r"(train|test)list(\d+)\.txt")
_HMDB = re.compile(r"(.+)_test_split(\d)\.txt")
_HEAD_BYTES = 4096


def published(files: Files, source: str) -> Listing | None:
    """The lists of a published dataset that `source` holds or is one of; None where it is none that we know.

    Raises:
        DataError: a list is not of its form; the message names file, line, value and remedy.
    """
    if files.is_file(source):
        return _of_file(files, os.path.dirname(source) or ".", os.path.basename(source))
    if not files.is_folder(source):
        return None
    inner = [name for name in files.children(source)[0] if not name.startswith(".")]
    for folder in (source, *(os.path.join(source, name) for name in inner)):
        listing = _of_folder(files, folder)
        if listing is not None:
            return listing
    return None


def _of_folder(files: Files, folder: str) -> Listing | None:
    names = files.children(folder)[1]
    if "Charades_v1_train.csv" in names:
        return _charades(files, folder, [name for name in names if _CHARADES.fullmatch(name)])
    prefixes = {match[1] for name in names if (match := _SOMETHING.fullmatch(name)) and match[2] == "labels"}
    for prefix in sorted(prefixes):
        if f"{prefix}train.json" in names:
            return _something(files, folder, prefix, names)
    if {"train.csv", "val.csv"} <= {*names} and _is_frame_list(files, os.path.join(folder, "train.csv")):
        return _charades_frames(files, folder, names)
    if "classInd.txt" in names and "trainlist01.txt" in names:
        return _ucf(files, folder, "01")
    if any((match := _HMDB.fullmatch(name)) and match[2] == "1" for name in names):
        return _hmdb(files, folder, names, "1")
    sides: dict[str, str] = {}
    for wanted in SPLIT_NAMES:
        for name in names:
            match = _KINETICS_SIDES.fullmatch(name)
            if match and match[1].lower() == wanted and _is_kinetics(files, os.path.join(folder, name)):
                sides.setdefault(SPLIT_NAMES[wanted], name)
    return _kinetics(files, folder, sorted(sides.values())) if sides else None


def _of_file(files: Files, folder: str, name: str) -> Listing | None:
    names = files.children(folder)[1]
    if _CHARADES.fullmatch(name):
        return _charades(files, folder, [other for other in names if _CHARADES.fullmatch(other)])
    if (match := _SOMETHING.fullmatch(name)) is not None:
        return _something(files, folder, match[1], names)
    if (match := _UCF.fullmatch(name)) is not None:
        return _ucf(files, folder, match[2])
    if (match := _HMDB.fullmatch(name)) is not None:
        return _hmdb(files, folder, names, match[2])
    if name in ("train.csv", "val.csv") and _is_frame_list(files, os.path.join(folder, name)):
        return _charades_frames(files, folder, names)
    if name.lower().endswith(".csv") and _is_kinetics(files, os.path.join(folder, name)):
        return _kinetics(files, folder, [name])
    return None


def _is_kinetics(files: Files, path: str) -> bool:
    return {name.strip().lower() for name in _head(files, path).split(",")} >= _KINETICS


def _is_frame_list(files: Files, path: str) -> bool:
    return _head(files, path).startswith(_FRAMES_HEAD)


def _head(files: Files, path: str) -> str:
    return files.read(path)[:_HEAD_BYTES].decode("utf-8-sig", errors="replace").split("\n", 1)[0]


def _kinetics(files: Files, folder: str, names: list[str]) -> Listing:
    form = "Kinetics csv (label,youtube_id,time_start,time_end[,split])"
    entries = []
    for name in names:
        path = os.path.join(folder, name)
        side = _KINETICS_SIDES.fullmatch(name)
        for line, row in _rows(files, path, form):
            named = row.get("split") or (side[1] if side else "")
            if named.lower() not in SPLIT_NAMES:
                raise _malformed(path, line, f"has the split {named!r}", f"write one of {', '.join(SPLIT_NAMES)}")
            try:
                start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
            except (ValueError, OverflowError):
                raise _malformed(
                    path, line, f"has the times {row['time_start']!r} to {row['time_end']!r}", "write whole seconds"
                ) from None
            if not row["label"] or not row["youtube_id"]:
                raise _malformed(path, line, "lacks a label or an id", "complete it, or take it out")
            clip = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            entries.append(
                Entry(clip, row["label"], SPLIT_NAMES[named.lower()], row["youtube_id"], f"{name} line {line}")
            )
    return Listing(form=form, entries=tuple(entries))


def _charades(files: Files, folder: str, names: list[str]) -> Listing:
    form = "Charades csv (id,...,actions,length)"
    classes = os.path.join(folder, "Charades_v1_classes.txt")
    codes: dict[str, str] = {}
    for line, text in _lines(files, classes, form):
        code, _, title = text.partition(" ")
        if not re.fullmatch(r"c\d{3}", code) or not title.strip():
            raise _malformed(classes, line, f"is {text!r}", "write e.g. c000 Holding some clothes")
        codes[code] = title.strip()
    entries = []
    for name in names:
        path = os.path.join(folder, name)
        split = SPLIT_NAMES[_CHARADES.fullmatch(name)[1]]  # type: ignore[index]
        for line, row in _rows(files, path, form):
            if not row.get("id") or "actions" not in row:
                raise _malformed(path, line, "lacks the id or the actions", "take it from Charades.zip as it is")
            actions = tuple(_action(path, line, text, codes) for text in row["actions"].split(";") if text.strip())
            entries.append(Entry(row["id"], "", split, row.get("subject") or row["id"], f"{name} line {line}", actions))
    return Listing(form=form, entries=tuple(entries), classes=tuple(codes.values()), multi_label=True)


def _charades_frames(files: Files, folder: str, names: list[str]) -> Listing:
    """The lists of frames that PySlowFast trains on: each frame's classes become the actions of its video."""
    form = "Charades frame lists (original_vido_id video_id frame_id path labels)"
    entries, highest = [], 0
    for name in ("train.csv", "val.csv"):
        path = os.path.join(folder, name)
        shown: dict[str, list[tuple[int, ...]]] = {}
        places: dict[str, tuple[int, int]] = {}
        for line, text in itertools.islice(_lines(files, path, form), 1, None):
            fields = text.split()
            try:
                video, frame, labels = fields[0], int(fields[2]), fields[4].replace('"', "")
                classes = tuple(int(label) for label in labels.split(",") if label)
            except (ValueError, IndexError):
                raise _malformed(
                    path, line, f"is {text!r}", 'write e.g. 46GP8 0 0 46GP8/46GP8-000001.jpg "92,147"'
                ) from None
            frames = shown.setdefault(video, [])
            first = places.setdefault(video, (line, frame))[1]
            if frame != first + len(frames):
                raise _malformed(
                    path, line, f"has frame {frame} of {video}", f"list its frames in order, here {first + len(frames)}"
                )
            frames.append(classes)
            highest = max(highest, *classes, 0)
        split = SPLIT_NAMES[name.removesuffix(".csv")]
        entries += [
            Entry(video, "", split, video, f"{name} line {places[video][0]}", _runs(frames))
            for video, frames in shown.items()
        ]
    titles = tuple(str(number) for number in range(highest + 1))
    if "Charades_v1_classes.txt" in names:
        lines = _lines(files, os.path.join(folder, "Charades_v1_classes.txt"), form)
        known = tuple(text.partition(" ")[2] for _, text in lines)
        numbered = {str(number): title for number, title in enumerate(known)}
        entries = [
            replace(entry, actions=tuple(replace(a, name=numbered.get(a.name, a.name)) for a in entry.actions))
            for entry in entries
        ]
        titles = known + titles[len(known) :]
    return Listing(form=form, entries=tuple(entries), classes=titles, multi_label=True)


def _runs(frames: list[tuple[int, ...]]) -> tuple[NamedAction, ...]:
    """The runs of frames that show a class, from the first frame's time to the last one's."""
    actions = []
    for label in sorted({label for classes in frames for label in classes}):
        numbers = [number for number, classes in enumerate(frames) if label in classes]
        for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            members = [number for _, number in run]
            actions.append(NamedAction(str(label), members[0] / _FRAMES_PER_S, members[-1] / _FRAMES_PER_S))
    return tuple(actions)


def _action(path: str, line: int, text: str, codes: Mapping[str, str]) -> NamedAction:
    try:
        code, start, end = text.split()
        return NamedAction(codes[code], float(start), float(end))
    except (ValueError, KeyError):
        raise _malformed(
            path, line, f"has the action {text!r}", "write a code of Charades_v1_classes.txt and two times: c092 11.90 21.20"
        ) from None  # fmt: skip


def _something(files: Files, folder: str, prefix: str, names: list[str]) -> Listing:
    form = "Something-Something v2 json (train, validation and labels)"
    for side in ("train", "validation", "labels"):
        if f"{prefix}{side}.json" not in names:
            raise DataError(
                "data.path", folder, f"holds no {prefix}{side}.json, which belongs to {form}", "put it beside the others"
            )  # fmt: skip
    path = os.path.join(folder, f"{prefix}labels.json")
    tree = _json(files, path)
    if isinstance(tree, list):
        tree = {name: index for index, name in enumerate(tree)}
    try:
        numbers = {str(name): int(number) for name, number in tree.items()}
    except (AttributeError, TypeError, ValueError):
        numbers = {}
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(
            "data.path", path, "does not number its classes from 0", 'write {"Approaching something with your camera": "0", ...}'
        )  # fmt: skip
    entries = []
    for side in ("train", "validation"):
        path = os.path.join(folder, f"{prefix}{side}.json")
        tree = _json(files, path)
        for number, video in enumerate(tree if isinstance(tree, list) else [None], 1):
            try:
                name, label = str(video["id"]), str(video["template"]).replace("[", "").replace("]", "")
            except (KeyError, TypeError):
                raise _malformed(
                    path, number, f"is {str(video)[:60]!r}", 'write [{"id": "78687", "template": "..."}, ...]', "entry"
                ) from None
            if label not in numbers:
                raise _malformed(path, number, f"has the template {label!r}", f"add it to {prefix}labels.json", "entry")
            entries.append(Entry(name, label, SPLIT_NAMES[side], name, f"{os.path.basename(path)} entry {number}"))
    return Listing(form=form, entries=tuple(entries), classes=tuple(sorted(numbers, key=numbers.__getitem__)))


def _ucf(files: Files, folder: str, split: str) -> Listing:
    form = "UCF101 lists (classInd.txt, trainlistNN.txt, testlistNN.txt)"
    index = os.path.join(folder, "classInd.txt")
    numbers: dict[str, str] = {}
    for line, text in _lines(files, index, form):
        number, _, name = text.partition(" ")
        if number != str(len(numbers) + 1) or not name.strip():
            raise _malformed(index, line, f"is {text!r}", f"number the classes from 1: {len(numbers) + 1} Name")
        numbers[number] = name.strip()
    entries = []
    for side in ("train", "test"):
        path = os.path.join(folder, f"{side}list{split}.txt")
        for line, text in _lines(files, path, form):
            video, _, number = text.partition(" ")
            label = video.partition("/")[0]
            if label not in numbers.values() or (number and numbers.get(number.strip()) != label):
                raise _malformed(
                    path, line, f"is {text!r}", "write Class/video.avi, in training with the number classInd.txt gives the class"
                )  # fmt: skip
            clip = os.path.splitext(video)[0]
            entries.append(
                Entry(clip, label, SPLIT_NAMES[side], re.sub(r"_c\d+$", "", clip), f"{os.path.basename(path)} line {line}")
            )  # fmt: skip
    return Listing(form=form, entries=tuple(entries), classes=tuple(numbers.values()))


def _hmdb(files: Files, folder: str, names: list[str], split: str) -> Listing:
    form = "HMDB51 lists (class_test_splitN.txt)"
    entries = []
    for name in names:
        match = _HMDB.fullmatch(name)
        if match is None or match[2] != split:
            continue
        path = os.path.join(folder, name)
        for line, text in _lines(files, path, form):
            video, _, side = text.rpartition(" ")
            if not video or side not in ("0", "1", "2"):
                raise _malformed(path, line, f"is {text!r}", "write video.avi 1 (training), 2 (test) or 0 (neither)")
            if side != "0":
                clip = f"{match[1]}/{os.path.splitext(video.strip())[0]}"
                entries.append(Entry(clip, match[1], "train" if side == "1" else "val", clip, f"{name} line {line}"))
    return Listing(form=form, entries=tuple(entries))


def _lines(files: Files, path: str, form: str) -> Iterator[tuple[int, str]]:
    """The numbered lines that are not blank."""
    if not files.is_file(path):
        raise DataError("data.path", path, f"is missing, which belongs to {form}", "put it beside the others")
    for number, line in enumerate(text_of(files, path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _rows(files: Files, path: str, form: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with a head, by lower-case column."""
    reader = csv.reader(text_of(files, path).split("\n"))
    try:
        head = [name.strip().lower() for name in next(reader, [])]
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(head):
                raise _malformed(
                    path, reader.line_num, f"has {len(fields)} columns", f"give the {len(head)} of its head"
                )
            yield reader.line_num, {name: field.strip() for name, field in zip(head, fields, strict=True)}
    except csv.Error as error:
        raise _malformed(path, reader.line_num, f"is no CSV ({error})", f"give a {form}") from None


def _json(files: Files, path: str) -> Any:
    try:
        return json.loads(text_of(files, path))
    except ValueError as error:
        raise DataError("data.path", path, f"is no JSON ({error})", "fetch it again") from None


def _malformed(path: str, number: int, problem: str, remedy: str, what: str = "line") -> DataError:
    return DataError("data.path", path, f"{what} {number} {problem}", remedy)
