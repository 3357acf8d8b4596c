"""Checks that need neither torch nor Ray: what cannot work is refused at once, before anything starts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from mgray.config import INGEST_FIELDS, SPEED_FIELDS, Run
from mgray.data.annotations import read_annotations
from mgray.data.shards.manifest import MANIFEST
from mgray.data.shards.shard_set import ShardSet
from mgray.data.storage import answered, unreadable
from mgray.errors import CheckpointError, ConfigError, MgrayError
from mgray.model import check_model
from mgray.plan import Plan
from mgray.plan.state import ScheduleState

SHARDS_FOLDER = "shards"
"""Folder of a storage that holds the shards of the videos that runs were given."""


def run_folder(run: Run) -> Path:
    """The folder of a run's records and checkpoints."""
    return Path(run.storage).expanduser().absolute() / run.name


def check_run(run: Run) -> None:
    """Refuse what cannot work, before torch or Ray start.

    Raises:
        MgrayError: it names field, value and remedy.
    """
    check_input(run)
    check_name(run)


def check_input(run: Run) -> None:
    """Refuse a model, a storage or data that cannot be used.

    Raises:
        ConfigError: of model, schedule or storage.
        DataError: the data is not there, or neither whole shards nor a set of labelled videos.
    """
    check_model(run.model)
    check_tracker(run)
    _check_mixing(run)
    if run.train.compile:
        check_compiler()
    if "://" in run.storage:
        raise ConfigError("storage", run.storage, "is no folder", "give a folder that all nodes share")
    _check_storage(run)
    _check_init(run)
    Plan.compile(run.plan, 1)
    if not run.data.path:
        raise ConfigError(
            "data.path", run.data.path, "is empty", "give --data.path: a folder of videos, a list, or shards"
        )
    if not is_shards(run.data.path):
        found = read_annotations(run.data.path, val_fraction=run.data.val_fraction, videos=run.data.videos)
        _check_smoothing(run, found.multi_label)
        return
    shards = ShardSet.open(run.data.path)
    _check_smoothing(run, shards.multi_label)
    if not shards.is_passthrough and run.feed.source == "files":
        raise ConfigError(
            "feed.source", run.feed.source, f"does not go with the shards in {run.data.path}",
            "give the videos themselves as --data.path, or leave it out",
        )  # fmt: skip


def _check_mixing(run: Run) -> None:
    mixing = [name for name in ("mixup", "cutmix") if getattr(run.train, name)]
    for name in ("batch", "bn_group"):
        if mixing and getattr(run.plan, name) < 2:
            raise ConfigError(
                f"plan.{name}", getattr(run.plan, name), f"leaves train.{mixing[0]} no other clip of the BN group to mix with",
                f"give 2 or more, or --train.{mixing[0]} 0",
            )  # fmt: skip


def _check_smoothing(run: Run, multi_label: bool) -> None:
    if multi_label and run.train.label_smoothing:
        raise ConfigError(
            "train.label_smoothing", run.train.label_smoothing, "does not go with videos of several classes", "leave it out"
        )  # fmt: skip


def check_compiler() -> None:
    """Refuse to compile where the tools for it are missing.

    Raises:
        ConfigError: no C++ compiler, or no header files of Python.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            "train.compile", True, f"needs a C++ compiler, and there is no {compiler}",
            "install one (apt install g++), name it in CXX, or leave --train.compile out",
        )  # fmt: skip
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise ConfigError(
            "train.compile", True, f"needs Python's header files, and {headers} has none",
            "install them (apt install python3-dev), or leave --train.compile out",
        )  # fmt: skip


def _check_storage(run: Run) -> None:
    folder = run_folder(run)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            "storage", run.storage, f"cannot be used, since {nearest} is no folder that can be written to",
            "give another --storage, or another --name",
        )  # fmt: skip


def _check_init(run: Run) -> None:
    if run.model.init and starts_afresh(run) and not Path(run.model.init).expanduser().exists():
        raise ConfigError(
            "model.init", run.model.init, "is not there", "name a file from mgray convert, or a run's folder or checkpoint"
        )  # fmt: skip


def starts_afresh(run: Run) -> bool:
    """Whether a run has no checkpoint to go on from."""
    return not any(run_folder(run).glob("*/meta.json"))


def check_name(run: Run) -> None:
    """Refuse a name under which a run with other settings lies.

    Raises:
        CheckpointError: it names the settings that differ.
        ConfigError: the name is taken.
    """
    if run.name == SHARDS_FOLDER:
        raise ConfigError("name", run.name, "is the folder of ingested videos beside the runs", "give another --name")
    stored = run_folder(run) / "run.json"
    if stored.is_file():
        try:
            earlier = Run.from_json(json.loads(stored.read_text()))
        except (ValueError, MgrayError):
            raise CheckpointError(
                "name", run.name, f"holds a run of another mgray ({stored})", "give another --name"
            ) from None
        if earlier.digest() != run.digest():
            raise CheckpointError(
                "name", run.name, f"is a run with other settings ({differences(earlier.to_json(), run)})",
                f"give another --name, or remove {stored.parent}",
            )  # fmt: skip


def check_amendments(run: Run, amendments: ScheduleState | None) -> None:
    """Refuse to bring amendments into a run that was begun without them.

    Raises:
        CheckpointError: another --name is needed.
    """
    folder = run_folder(run)
    if amendments is None or not (folder / "run.json").is_file():
        return
    wanted = amendments.to_json()["amendments"]
    try:
        own = json.loads((folder / "schedule.json").read_text())["amendments"]
        is_theirs = own[: len(wanted)] == wanted
    except (OSError, ValueError, KeyError, TypeError):
        is_theirs = not wanted
    if not is_theirs:
        raise CheckpointError(
            "name", run.name, "is a run without the amendments that are given with it", f"give another --name, or remove {folder}"
        )  # fmt: skip


def check_tracker(run: Run) -> None:
    """Refuse a tracker whose package is not installed here.

    Raises:
        ConfigError: with the command that installs it.
    """
    packages = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
    if run.track and importlib.util.find_spec(run.track) is None:
        raise ConfigError(
            "track", run.track, "is not installed", f"pip install {packages[run.track]} on all nodes, or leave it out"
        )


def is_shards(path: str) -> bool:
    """Whether a data path names ingested shards rather than videos.

    Raises:
        DataError: its file system does not answer.
    """
    if "://" in path:
        return True
    try:
        return answered((Path(path).expanduser() / MANIFEST).is_file)
    except OSError as error:
        raise unreadable(path, error) from None


def differences(tree: dict[str, Any], run: Run) -> str:
    """The settings that bear on the result in which a stored configuration and a run differ, e.g. `plan.lr 0.1 -> 0.2`."""
    theirs, ours = Run.from_json(tree).to_json(), run.to_json()
    free = {"data": INGEST_FIELDS, "train": SPEED_FIELDS}
    found = [
        f"{section}.{key} {theirs[section][key]} -> {value}"
        for section in ("plan", "data", "model", "train")
        for key, value in ours[section].items()
        if value != theirs[section][key] and key not in free.get(section, ())
    ]
    return ", ".join(found)
