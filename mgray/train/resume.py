"""Where a run goes on: the newest checkpoint that all its workers find whole, which has to be this run's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mgray.check import differences
from mgray.config import Run
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import CheckpointError, DamagedCheckpointError
from mgray.train.checkpoint import CheckpointMeta, read_meta
from mgray.train.evaluate import of_all_ranks
from mgray.train.session import Session

_Mark = tuple[int, int, float, str]
"""What tells a checkpoint from all others of its run: step, attempt, seconds trained, ledger."""


def agreed_checkpoint(folders: Sequence[Path], session: Session) -> tuple[Path, CheckpointMeta] | None:
    """The newest of some checkpoints, newest first, that every rank finds whole; None where no rank finds any. All ranks take part.

    A rank whose view of the storage is stale would else go on from other weights than the rest.

    Raises:
        CheckpointError: none is whole on every rank, or one is of another version of mgray.
    """
    whole = _whole(folders)
    newest = next(whole, None)
    seen = of_all_ranks((len(folders) > 0, None if newest is None else _mark(newest[1])), session)
    if len(set(seen)) == 1:
        if folders and newest is None:
            raise CheckpointError(
                "checkpoint", str(folders[0].parent), f"holds {len(folders)} checkpoints, none of them whole",
                "give another --name, or remove them to train anew",
            )  # fmt: skip
        return newest
    own = {} if newest is None else {_mark(found[1]): found for found in (newest, *whole)}
    first, *others = of_all_ranks(tuple(own), session)
    for mark in first:
        if all(mark in marks for marks in others):
            return own[mark]
    steps = [[mark[0] for mark in marks] for marks in (first, *others)]
    raise CheckpointError(
        "checkpoint", str(folders[0].parent) if folders else "", f"differs between workers, who find those of steps {steps} whole",
        "see that all nodes have the same view of --storage, and start it again",
    )  # fmt: skip


def _whole(folders: Sequence[Path]) -> Iterator[tuple[Path, CheckpointMeta]]:
    for folder in folders:
        with contextlib.suppress(DamagedCheckpointError):
            yield folder, read_meta(folder)


def _mark(meta: CheckpointMeta) -> _Mark:
    return meta.step, meta.attempt, meta.train_s, meta.ledger


def check_checkpoint(meta: CheckpointMeta, run: Run, shards: ShardSet, folder: Path) -> None:
    """Refuse a checkpoint that another run or other data made.

    Raises:
        CheckpointError: it names what differs.
    """
    # an earlier mgray's digest may hold fields that ours leaves out
    if meta.run_digest != run.digest() and Run.from_json(meta.run).digest() != run.digest():
        raise CheckpointError(
            "checkpoint", str(folder), f"is of another plan or model ({differences(meta.run, run)})",
            "give the run another --name, or the settings it was started with",
        )  # fmt: skip
    if meta.data_digest != shards.digest():
        raise CheckpointError(
            "checkpoint", str(folder), f"was trained on other data than {run.data.path}", "give --data.path of its shards, or another --name"
        )  # fmt: skip
