"""Lists of published datasets, in the form they are distributed in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgray.data.annotations import Action, read_annotations
from mgray.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refusal(source: str, videos: str = "") -> str:
    with pytest.raises(DataError) as caught:
        read_annotations(source, videos=videos)
    message = str(caught.value)
    assert "\n" not in message and "; " in message
    return message


def rows(found) -> list[tuple[str, str, str]]:
    return [(sample.split, sample.path, found.classes[sample.label]) for sample in found.samples]


KINETICS_HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"


def kinetics(
    root: Path, val: str = 'abseiling,-3B32lodo2M,59,69,val,0\n"air drumming",_dbcJuKJQNs,40,50,val,0\n'
) -> None:
    train = 'abseiling,0347ZoDXyP0,95,105,train,0\n"air drumming",-0Xr6SWHXXk,1,11,train,0\n'
    write(root / "annotations/train.csv", KINETICS_HEAD + train)
    write(root / "annotations/val.csv", KINETICS_HEAD + val)
    write(root / "annotations/test.csv", KINETICS_HEAD + "abseiling,zzz,0,10,test,0\n")
    touch(root, "train/0347ZoDXyP0_000095_000105.mp4", "train/air drumming/-0Xr6SWHXXk_000001_000011.mp4")
    touch(root, "val/-3B32lodo2M_000059_000069.mp4", "val/_dbcJuKJQNs_000040_000050.mkv")


KINETICS_ROWS = [
    ("train", "train/0347ZoDXyP0_000095_000105.mp4", "abseiling"),
    ("train", "train/air drumming/-0Xr6SWHXXk_000001_000011.mp4", "air drumming"),
    ("val", "val/-3B32lodo2M_000059_000069.mp4", "abseiling"),
    ("val", "val/_dbcJuKJQNs_000040_000050.mkv", "air drumming"),
]


def test_kinetics(tmp_path):
    kinetics(tmp_path)
    found = read_annotations(str(tmp_path))
    assert rows(found) == KINETICS_ROWS  # those of val.csv; the test set is left out beside it
    assert found.samples[0].group == "0347ZoDXyP0" and not found.multi_label
    lists = read_annotations(str(tmp_path / "annotations"), videos=str(tmp_path))
    assert (rows(lists), lists.root) == (KINETICS_ROWS, str(tmp_path))


def test_kinetics_as_deepmind_names_it_and_as_one_list(tmp_path):
    head = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "train.csv", head + "a,x,0.0,10.0,train\n")
    write(tmp_path / "validate.csv", head + "a,y,0,10,validate\n")
    touch(tmp_path, "x_000000_000010.mp4", "y_000000_000010.mp4")
    assert [row[:2] for row in rows(read_annotations(str(tmp_path)))] == [
        ("train", "x_000000_000010.mp4"), ("val", "y_000000_000010.mp4"),
    ]  # fmt: skip
    whole = write(tmp_path / "whole.csv", head + "a,x,0,10,train\na,y,0,10,validate\n")
    assert len(read_annotations(whole).samples) == 2
    assert "training videos only" in refusal(str(tmp_path / "train.csv"))


def test_kinetics_refusals_name_file_line_value_and_remedy(tmp_path):
    for line, words in (
        ("abseiling,-3B32lodo2M,59,late,val,0", "line 2 has the times '59' to 'late'; write whole seconds"),
        ("abseiling,-3B32lodo2M,59,69,holdout,0", "line 2 has the split 'holdout'; write one of train,"),
        ("abseiling,-3B32lodo2M,59,69,val", "line 2 has 5 columns; give the 6 of its head"),
        (",-3B32lodo2M,59,69,val,0", "line 2 lacks a label or an id"),
    ):
        kinetics(tmp_path, val=line + "\n")
        message = refusal(str(tmp_path))
        assert "annotations/val.csv" in message and words in message


def test_a_missing_video_is_named_with_its_line(tmp_path):
    kinetics(tmp_path)
    (tmp_path / "val/_dbcJuKJQNs_000040_000050.mkv").unlink()
    message = refusal(str(tmp_path))
    assert "lists 1 file that cannot be found" in message and "_dbcJuKJQNs_000040_000050 (val.csv line 3)" in message
    assert "Kinetics csv" in message
    touch(tmp_path, "256/_dbcJuKJQNs_000040_000050.mp4", "val/_dbcJuKJQNs_000040_000050.mp4")
    message = refusal(str(tmp_path))
    assert "is at 2 places" in message and "256/_dbcJuKJQNs_000040_000050.mp4" in message
    assert "data.videos" in refusal(str(tmp_path), videos=str(tmp_path / "none"))


def something(root: Path, labels: object, prefix: str = "something-something-v2-") -> None:
    train = [
        {"id": "78687", "label": "holding potato next to vicks bottle", "template": "Holding [something] next to [something]",
         "placeholders": ["potato", "vicks bottle"]},
        {"id": "100", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    ]  # fmt: skip
    validation = [
        {"id": "74225", "label": "closing a door", "template": "Closing [something]", "placeholders": ["a door"]}
    ]
    for name, tree in (("train", train), ("validation", validation), ("labels", labels), ("test", [{"id": "1420"}])):
        write(root / f"labels/{prefix}{name}.json", json.dumps(tree))
    touch(root, *(f"20bn-something-something-v2/{number}.webm" for number in (78687, 100, 74225, 1420)))


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
@pytest.mark.parametrize(
    "labels",
    [
        {"Holding something next to something": "0", "Closing something": "1"},
        {"Holding something next to something": 0, "Closing something": 1},
        ["Holding something next to something", "Closing something"],
    ],
    ids=["strings", "numbers", "list"],
)
def test_something_something(tmp_path, labels, prefix):
    something(tmp_path, labels, prefix)
    found = read_annotations(str(tmp_path))
    assert found.classes == ("Holding something next to something", "Closing something")  # in their numbers' order
    assert rows(found) == [
        ("train", "20bn-something-something-v2/100.webm", "Closing something"),
        ("train", "20bn-something-something-v2/78687.webm", "Holding something next to something"),
        ("val", "20bn-something-something-v2/74225.webm", "Closing something"),
    ]
    by_file = read_annotations(str(tmp_path / f"labels/{prefix}train.json"), videos=str(tmp_path))
    assert by_file == found


def test_something_something_refusals(tmp_path):
    something(tmp_path, {"Closing something": "0"})
    assert "entry 1 has the template 'Holding something next to something'; add it to" in refusal(str(tmp_path))
    something(tmp_path, {"Closing something": "3"})
    assert "does not number its classes from 0" in refusal(str(tmp_path))
    (tmp_path / "labels/something-something-v2-validation.json").unlink()
    assert "holds no something-something-v2-validation.json" in refusal(str(tmp_path))
    write(tmp_path / "labels/something-something-v2-train.json", "[{")
    write(tmp_path / "labels/something-something-v2-validation.json", "[]")
    something_labels = {"Holding something next to something": "0", "Closing something": "1"}
    write(tmp_path / "labels/something-something-v2-labels.json", json.dumps(something_labels))
    assert "train.json' is no JSON" in refusal(str(tmp_path)).replace(" = ", " ").replace(": is", " is")
    write(tmp_path / "labels/something-something-v2-train.json", '[{"id": "5"}]')
    assert "entry 1 is" in refusal(str(tmp_path))


CHARADES_HEAD = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


def charades(root: Path, test: str = "") -> None:
    train = (
        '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food;stove,"cooks; ""tidies"".",c092 11.90 21.20;c147 0.00 12.60,24.83\n'
        "N11GT,0KZ7,Stairs,6,7,Yes,Goes down.,blanket,Goes.,,32.0\n"
        "0KZ7X,0KZ7,Stairs,6,7,Yes,Goes.,blanket,Goes.,c001 0.00 3.30,32.0\n"
    )
    test = test or "YSKX3,5IBE,Hallway,5,7,Yes,Opens.,door,Opens.,c001 2.0 9.5,11.5\n"
    write(root / "Charades/Charades_v1_train.csv", CHARADES_HEAD + train)
    write(root / "Charades/Charades_v1_test.csv", CHARADES_HEAD + test)
    classes = "c001 Putting clothes somewhere\nc092 Watching a laptop\nc147 Someone is cooking something\n"
    write(root / "Charades/Charades_v1_classes.txt", classes)
    touch(root, *(f"Charades_v1_480/{name}.mp4" for name in ("46GP8", "N11GT", "0KZ7X", "YSKX3")))


def test_charades(tmp_path):
    charades(tmp_path)
    found = read_annotations(str(tmp_path))
    assert found.multi_label
    assert found.classes == ("Putting clothes somewhere", "Watching a laptop", "Someone is cooking something")
    assert [(s.split, s.path, s.label, s.group) for s in found.samples] == [
        ("train", "Charades_v1_480/0KZ7X.mp4", -1, "0KZ7"),
        ("train", "Charades_v1_480/46GP8.mp4", -1, "HR43"),
        ("train", "Charades_v1_480/N11GT.mp4", -1, "0KZ7"),
        ("val", "Charades_v1_480/YSKX3.mp4", -1, "5IBE"),
    ]
    cooking = (Action(label=1, start_s=11.9, end_s=21.2), Action(label=2, start_s=0.0, end_s=12.6))
    assert [s.actions for s in found.samples[1:3]] == [cooking, ()]  # a video may show none
    assert read_annotations(str(tmp_path / "Charades/Charades_v1_train.csv"), videos=str(tmp_path)) == found


def test_charades_refusals(tmp_path):
    for actions in ("c999 0.0 1.0", "c001 0.0", "c001 now 1.0"):
        charades(tmp_path, test=f"YSKX3,5IBE,Hallway,5,7,Yes,Opens.,door,Opens.,{actions},11.5\n")
        message = refusal(str(tmp_path))
        assert f"Charades_v1_test.csv' line 2 has the action '{actions}'" in message.replace(": line", " line")
        assert "write a code of Charades_v1_classes.txt" in message
    (tmp_path / "Charades/Charades_v1_classes.txt").unlink()
    assert "Charades_v1_classes.txt" in refusal(str(tmp_path))


FRAMES_HEAD = "original_vido_id video_id frame_id path labels\n"


def frame_lists(root: Path, last: str = '46GP8 0 4 46GP8/46GP8-000005.jpg "1"') -> None:
    labels = ('""', '"0,1"', '"1"', '""')
    train = "".join(f"46GP8 0 {i} 46GP8/46GP8-{i + 1:06d}.jpg {text}\n" for i, text in enumerate(labels))
    write(root / "lists/train.csv", FRAMES_HEAD + train + last + "\n")
    write(root / "lists/val.csv", FRAMES_HEAD + 'YSKX3 1 0 YSKX3/YSKX3-000001.jpg "1"\n')
    touch(root, "Charades_v1_480/46GP8.mp4", "Charades_v1_480/YSKX3.mp4")


def test_charades_frame_lists_of_pyslowfast(tmp_path):
    frame_lists(tmp_path)
    found = read_annotations(str(tmp_path))
    assert found.multi_label and found.classes == ("0", "1")
    train, val = found.samples
    assert [(a.label, a.start_s, a.end_s) for a in train.actions] == [
        (0, 1 / 24, 1 / 24), (1, 1 / 24, 2 / 24), (1, 4 / 24, 4 / 24),
    ]  # fmt: skip
    assert val.path == "Charades_v1_480/YSKX3.mp4" and val.actions == (Action(label=1, start_s=0.0, end_s=0.0),)
    write(tmp_path / "lists/Charades_v1_classes.txt", "c000 Sitting down\nc001 Standing up\nc002 Cooking\n")
    named = read_annotations(str(tmp_path / "lists/val.csv"), videos=str(tmp_path))
    assert named.classes == ("Sitting down", "Standing up", "Cooking") and named.samples == found.samples
    frame_lists(tmp_path, last="46GP8 0 9 46GP8/46GP8-000010.jpg ")
    assert "line 6 is '46GP8 0 9 46GP8/46GP8-000010.jpg'" in refusal(str(tmp_path))
    frame_lists(tmp_path, last='46GP8 0 9 46GP8/46GP8-000010.jpg "1"')
    assert "line 6 has frame 9 of 46GP8; list its frames in order, here 4" in refusal(str(tmp_path))


def ucf(root: Path, train: str = "", split: str = "01") -> None:
    write(root / "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    train = train or "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nYoYo/v_YoYo_g25_c05.avi 2\n"
    write(root / f"ucfTrainTestlist/trainlist{split}.txt", train.replace("\n", "\r\n"))
    write(root / f"ucfTrainTestlist/testlist{split}.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    names = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", "YoYo/v_YoYo_g25_c05", "YoYo/v_YoYo_g01_c01")
    touch(root, *(f"UCF-101/{name}.avi" for name in names))


def test_ucf101(tmp_path):
    ucf(tmp_path)
    found = read_annotations(str(tmp_path))
    assert rows(found) == [
        ("train", "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup"),
        ("train", "UCF-101/YoYo/v_YoYo_g25_c05.avi", "YoYo"),
        ("val", "UCF-101/YoYo/v_YoYo_g01_c01.avi", "YoYo"),
    ]
    assert found.samples[1].group == "YoYo/v_YoYo_g25"
    ucf(tmp_path, "YoYo/v_YoYo_g25_c05.avi 2\n", split="02")
    second = read_annotations(str(tmp_path / "ucfTrainTestlist/testlist02.txt"), videos=str(tmp_path))
    assert len(second.samples) == 2 and second.classes == (
        "ApplyEyeMakeup",
        "YoYo",
    )  # the numbers are those of classInd.txt


def test_ucf101_refusals(tmp_path):
    for line in ("YoYo/v_YoYo_g25_c05.avi 1", "Juggling/v_Juggling_g25_c05.avi 3"):
        ucf(tmp_path, line + "\n")
        assert f"line 1 is '{line}'; write Class/video.avi" in refusal(str(tmp_path))
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "0 ApplyEyeMakeup\n")
    assert "line 1 is '0 ApplyEyeMakeup'; number the classes from 1" in refusal(str(tmp_path))


def hmdb(
    root: Path, sit: str = "s_u_cm_np1_fr_med_0.avi 1 \ns_u_cm_np1_fr_med_1.avi 2 \ns_u_cm_np1_fr_med_2.avi 0 \n"
) -> None:
    lists = root / "testTrainMulti_7030_splits"
    write(lists / "sit_test_split1.txt", sit)
    write(lists / "brush_hair_test_split1.txt", "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \nb_1.avi 2 \n")
    write(lists / "sit_test_split2.txt", "s_u_cm_np1_fr_med_2.avi 1 \n")
    write(lists / "brush_hair_test_split2.txt", "b_1.avi 1 \nApril_09_brush_hair_u_nm_np1_ba_goo_0.avi 2 \n")
    touch(root, *(f"hmdb51/sit/s_u_cm_np1_fr_med_{i}.avi" for i in range(3)))
    touch(root, "hmdb51/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "hmdb51/brush_hair/b_1.avi")


def test_hmdb51(tmp_path):
    hmdb(tmp_path)
    found = read_annotations(str(tmp_path))
    assert rows(found) == [
        ("train", "hmdb51/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair"),
        ("train", "hmdb51/sit/s_u_cm_np1_fr_med_0.avi", "sit"),
        ("val", "hmdb51/brush_hair/b_1.avi", "brush_hair"),
        ("val", "hmdb51/sit/s_u_cm_np1_fr_med_1.avi", "sit"),
    ]
    second = read_annotations(str(tmp_path / "testTrainMulti_7030_splits/sit_test_split2.txt"), videos=str(tmp_path))
    assert [row[:2] for row in rows(second)] == [
        ("train", "hmdb51/brush_hair/b_1.avi"),
        ("train", "hmdb51/sit/s_u_cm_np1_fr_med_2.avi"),
        ("val", "hmdb51/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi"),
    ]
    hmdb(tmp_path, sit="s_u_cm_np1_fr_med_0.avi 3\n")
    assert "sit_test_split1.txt" in refusal(str(tmp_path)) and "line 1 is 's_u_cm_np1_fr_med_0.avi 3'" in refusal(
        str(tmp_path)
    )


def test_lists_of_ours_come_first(tmp_path):
    kinetics(tmp_path)
    write(
        tmp_path / "annotations.csv",
        "train/0347ZoDXyP0_000095_000105.mp4,a,train\nval/-3B32lodo2M_000059_000069.mp4,a,val\n",
    )
    assert [row[2] for row in rows(read_annotations(str(tmp_path)))] == ["a", "a"]
