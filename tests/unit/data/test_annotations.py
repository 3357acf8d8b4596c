import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgray.data.annotations import Annotations, hold_out, read_annotations
from mgray.errors import DataError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def listed(root: Path, text: str, name: str = "list.csv") -> str:
    (root / name).write_text(text)
    return str(root / name)


def by_split(annotations: Annotations, split: str) -> list[str]:
    return [sample.path for sample in annotations.samples if sample.split == split]


def refusal(source: object) -> str:
    with pytest.raises(DataError) as caught:
        read_annotations(str(source))
    message = str(caught.value)
    assert message.startswith("data.path = ") and "\n" not in message and "; " in message
    return message


def test_a_folder_with_splits(tmp_path):
    touch(
        tmp_path, "train/run/1.mp4", "train/run/2.AVI", "train/jump/1.webm", "validation/run/9.mkv", "test/jump/3.mov"
    )
    touch(tmp_path, "train/run/notes.txt", "train/run/.hidden.mp4", "train/.cache/1.mp4", "readme.md")
    annotations = read_annotations(str(tmp_path))
    assert annotations.classes == ("jump", "run") and annotations.root == str(tmp_path)
    assert [(s.path, s.label, s.split) for s in annotations.samples] == [
        ("train/jump/1.webm", 0, "train"),
        ("train/run/1.mp4", 1, "train"),
        ("train/run/2.AVI", 1, "train"),
        ("test/jump/3.mov", 0, "val"),
        ("validation/run/9.mkv", 1, "val"),
    ]
    assert Path(annotations.locate(annotations.samples[0])) == tmp_path / "train/jump/1.webm"


def test_a_folder_without_splits_holds_clips_out(tmp_path):
    touch(tmp_path, *(f"{name}/{i}.mp4" for name in ("a", "b") for i in range(10)), "train/0.mp4", "train/1.mp4")
    annotations = read_annotations(str(tmp_path), val_fraction=0.3)
    held = Counter(annotations.classes[s.label] for s in annotations.samples if s.split == "val")
    assert held == {"a": 3, "b": 3, "train": 1}  # a class may have a split's name
    assert annotations == read_annotations(str(tmp_path), val_fraction=0.3)


def test_csv_with_and_without_header(tmp_path):
    touch(tmp_path, "v/a one.mp4", "v/b,two.mp4", "v/c.mp4", "v/d.mp4")
    bare = listed(
        tmp_path, 'v/a one.mp4,run far,train,g1\n"v/b,two.mp4",jump,train,g2\n\nv/c.mp4,run far,test,g3\nv/d.mp4,jump,val,g4\n'
    )  # fmt: skip
    first = read_annotations(bare)
    assert first.classes == ("jump", "run far")
    assert by_split(first, "train") == ["v/a one.mp4", "v/b,two.mp4"] and by_split(first, "val") == [
        "v/c.mp4",
        "v/d.mp4",
    ]
    assert [sample.group for sample in first.samples] == ["g1", "g2", "g3", "g4"]
    headed = listed(
        tmp_path,
        "\ufefffold,Group,Label,path,split\r\n0,g4,jump,v/d.mp4,valid\r\n0,g1,run far,v/a one.mp4,TRAIN\r\n"
        '1,g2,jump,"v/b,two.mp4",train\r\n2,g3,run far,v/c.mp4,validation\r\n',
        "headed.csv",
    )
    assert read_annotations(headed).samples == first.samples


def test_kinetics_lists(tmp_path):
    touch(tmp_path, "a b/x.mp4", "a b/y, z.mp4", "c.mp4", "d.mp4")
    path = listed(tmp_path, "a b/y, z.mp4 10\na b/x.mp4 2\nc.mp4\t10\n\nd.mp4 2\n", "train.txt")
    annotations = read_annotations(path)
    assert annotations.classes == ("2", "10")
    assert {s.path: s.label for s in annotations.samples} == {"a b/x.mp4": 0, "a b/y, z.mp4": 1, "c.mp4": 1, "d.mp4": 0}
    assert Counter(s.split for s in annotations.samples) == {"train": 2, "val": 2}
    absolute = listed(tmp_path, f"{tmp_path}/c.mp4 0\n{tmp_path}/d.mp4 0\n", "absolute.txt")
    assert read_annotations(absolute).samples[0].path.startswith(str(tmp_path))


def test_lists_in_a_folder(tmp_path):
    touch(tmp_path, "x/1.mp4", "x/2.mp4", "x/3.mp4")
    listed(tmp_path, "x/1.mp4 0\nx/2.mp4 1\n", "train.csv")
    listed(tmp_path, "x/3.mp4 0\n", "val.csv")
    listed(tmp_path, "x/3.mp4 0\n", "test.csv")
    annotations = read_annotations(str(tmp_path))
    assert by_split(annotations, "train") == ["x/1.mp4", "x/2.mp4"] and by_split(annotations, "val") == ["x/3.mp4"]
    listed(tmp_path, "x/1.mp4,a,train\nx/2.mp4,b,train\nx/3.mp4,a,val\n", "annotations.csv")
    assert read_annotations(str(tmp_path)).classes == ("a", "b")


def test_paths_count_from_a_given_root(tmp_path):
    touch(tmp_path / "videos", "1.mp4", "2.mp4")
    path = listed(tmp_path, "1.mp4 0\n2.mp4 0\n")
    assert read_annotations(path, videos=str(tmp_path / "videos")).root == str(tmp_path / "videos")
    assert "cannot be found" in refusal(path)


def test_order_does_not_depend_on_the_list(tmp_path):
    rows = [(f"{i % 3}/{i}.mp4", f"c{i % 3}", f"g{i // 4}") for i in range(40)]
    touch(tmp_path, *(path for path, _, _ in rows))
    path = listed(tmp_path, "path,label,group\n" + "".join(f"{p},{label},{g}\n" for p, label, g in rows))
    first = read_annotations(path)
    random.Random(0).shuffle(rows)
    path = listed(tmp_path, "path,label,group\n" + "".join(f"{p},{label},{g}\n" for p, label, g in rows))
    assert read_annotations(path) == first


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("123456789")), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_held_out_groups_are_whole_and_every_class_keeps_a_side(items, fraction):
    held = hold_out(items, fraction)
    assert len(held) == len(items)
    sides: dict[str, set[bool]] = {}
    for (_, group), out in zip(items, held, strict=True):
        sides.setdefault(group, set()).add(out)
    assert all(len(side) == 1 for side in sides.values())
    assert {label for label, _ in items} == {label for (label, _), out in zip(items, held, strict=True) if not out}
    assert dict(zip(items, held, strict=True)) == dict(zip(items[::-1], hold_out(items[::-1], fraction), strict=True))


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 40), min_size=1, max_size=8), st.floats(0.05, 0.95))
def test_single_clips_are_held_out_to_the_share_of_each_class(counts, fraction):
    items = [(label, f"{label}/{i}") for label, count in counts.items() for i in range(count)]
    held = Counter(label for (label, _), out in zip(items, hold_out(items, fraction), strict=True) if out)
    for label, count in counts.items():
        low, high = (1, count - 1) if count > 1 else (0, 0)
        assert low <= held[label] <= high
        assert abs(held[label] - min(max(fraction * count, low), high)) <= 0.5 + 1e-9


def test_a_speaker_with_many_words_is_on_one_side():
    items = [(f"word{w}", f"speaker{s}") for s in range(15) for w in range(10) for _ in range(10)]
    held = hold_out(items, 0.2)
    assert sum(held) == 300
    assert len({group for (_, group), out in zip(items, held, strict=True) if out}) == 3


def test_what_is_missing_or_empty_is_named(tmp_path):
    assert "does not exist; give a folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    assert "holds no videos" in refusal(tmp_path / "bare")
    assert "holds no videos" in refusal(touch(tmp_path / "flat", "1.mp4", "2.mp4"))
    assert "holds no videos" in refusal(listed(tmp_path, "path,label\n"))
    holed = touch(tmp_path / "holed", "run/1.mp4", "jump/notes.txt")
    assert "1 class folder without a video: jump" in refusal(holed)
    mixed = touch(tmp_path / "mixed", "train/run/1.mp4", "val/run/2.mp4", "jump/3.mp4")
    assert "split folders (train, val) beside jump" in refusal(mixed)
    binary = tmp_path / "clip.mp4"
    binary.write_bytes(b"\xff\xfe\x80")
    assert "is no text" in refusal(binary)


def test_a_split_needs_both_sides_and_every_class_in_training(tmp_path):
    assert "training videos only" in refusal(touch(tmp_path / "one", "train/run/1.mp4"))
    assert "validation videos only" in refusal(touch(tmp_path / "other", "val/run/1.mp4"))
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    unseen = listed(tmp_path, "1.mp4,a,train\n2.mp4,b,val\n3.mp4,a,val\n")
    assert "1 class in validation only: b" in refusal(unseen)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.mp4,a,train\n2.mp4\n", "line 2 lacks a path or a label"),
        ("path,label\n1.mp4,a\n,b\n", "line 3 lacks a path or a label"),
        ("1.mp4,a,train\n2.mp4,a,held\n", "line 2 has the unknown split 'held'"),
        ("1.mp4,a,train\n2.mp4,a\n3.mp4,a,val\n", "line 2 names no split"),
        ("1.mp4 0\n2.mp4\n", "line 2 is not of the form: path label"),
        ("1.mp4,a\n2.mp4,a\n./1.mp4,b\n", "line 3 repeats the video of line 1"),
        ("1.mp4,a\n4.mp4,a\n5.mp4,b\n", "lists 2 files that cannot be found"),
    ],
)
def test_malformed_lists_are_refused_by_line(tmp_path, text, words):
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    assert words in refusal(listed(tmp_path, text))


def test_many_names_are_cut_short(tmp_path):
    path = listed(tmp_path, "".join(f"{i}.mp4 0\n" for i in range(100)))
    message = refusal(path)
    assert "100 files" in message and "0.mp4, 1.mp4, 2.mp4, ..." in message and len(message) < 400
