"""Files are data, never code; names stay within the output; Ray's dashboard is off."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import ray
import torch

from mgray.config import Run
from mgray.data.annotations import read_annotations
from mgray.data.decode.encode import encode_frames
from mgray.data.ingest import _parts
from mgray.data.ingest_part import encode_part
from mgray.data.storage import Folder
from mgray.errors import CheckpointError, ConfigError
from mgray.model.convert import read_weights
from mgray.train.checkpoint import META, TENSORS, read_model
from mgray.trainer import ray_running
from tests.support.videos import moving

SOURCES = sorted((Path(__file__).parents[2] / "mgray").rglob("*.py"))


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Dotted names of the functions that a file calls, with keyword arguments."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {key.arg or "": key.value for key in node.keywords}) for node in found]


def test_nothing_that_lies_in_a_file_is_run() -> None:
    loads = []
    for path in SOURCES:
        for name, keywords in calls(path):
            assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "marshal.loads", "os.system"), path
            assert "allow_pickle" not in keywords and "shell" not in keywords, path
            if name == "torch.load":
                assert ast.unparse(keywords["weights_only"]) == "True", path
            if name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
                loads.append(path.name)
    assert loads == ["ingest.py"], "of its own tasks' work list, which lies in no file"


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    """Its checksum is right: who can write the one can write the other."""
    torch.save({"model": {"weight": Evil(tmp_path / "ran")}}, tmp_path / TENSORS)
    digest = hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()
    (tmp_path / META).write_text(json.dumps({"sha256": digest}))
    with pytest.raises(CheckpointError, match="holds more than tensors, and is not read"):
        read_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_hold_code_are_refused(tmp_path: Path) -> None:
    torch.save({"model_state": Evil(tmp_path / "ran")}, tmp_path / "a.pyth")
    (tmp_path / "b.pyth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("a.pyth", "b.pyth"):
        with pytest.raises(CheckpointError):
            read_weights(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_names_of_a_list_write_nothing_outside(tmp_path: Path) -> None:
    """Classes, groups and paths that climb; one names a video beside the list's folder."""
    inside, out = tmp_path / "a" / "lists", tmp_path / "a" / "out"
    inside.mkdir(parents=True)
    for name in ("clip.mp4", "../clip.mp4"):
        encode_frames(str(inside / name), moving(8, 48, 32))
    lines = ["path,label,split,group", "clip.mp4,../../evil,train,../../g", "../clip.mp4,../../evil,val,/abs/h"]
    (inside / "list.csv").write_text("\n".join(lines))
    before = {path for path in tmp_path.rglob("*") if out not in path.parents and path != out}
    annotations = read_annotations(str(inside / "list.csv"), val_fraction=0.2)
    for part in _parts(str(inside / "list.csv"), annotations, (32,), 60.0, 64):
        for report in encode_part(Folder.of(str(out)), part):
            assert not report.error and not report.unread
    after = {path for path in tmp_path.rglob("*") if out not in path.parents and path != out}
    assert after == before
    assert len([path for path in out.rglob("*.arrow") if path.parent.name == "32"]) >= 1


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\\b", "", "x\0"])
def test_a_run_s_name_cannot_climb(name: str) -> None:
    with pytest.raises(ConfigError, match="is no folder name"):
        Run(name=name)


def test_a_local_ray_has_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_running(Run()):
        pass
    assert given["include_dashboard"] is False
