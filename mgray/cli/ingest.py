"""`mgray ingest` and `mgray shards`: from videos to shards, and what is in them."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mgray.cli.parse import Command, demand, parse, workload
from mgray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class IngestArguments:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = ""
    """A folder of videos (`[split/]class/clip.mp4`), a list (CSV `path,label[,split,group]`, or `path label` lines), or the lists of
    Kinetics, Something-Something v2, Charades, UCF101 or HMDB51 as they are published."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = ""
    """Folder for the shards."""
    videos: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Folder of the videos that lists name, where it is not that of the lists."""
    levels: tuple[str, ...] = ("256", "226", "160")
    """Short sides in pixels to store videos at, falling (smaller videos stay as they are); auto reads them off --workload."""
    workload: Annotated[str, tyro.conf.arg(metavar="NAME")] = "folder"
    """The schedule that --levels auto reads."""
    passthrough: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Store only tables of the videos' own packets: quick, no bytes of video, slower to train from; the videos must stay in place."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Encode a few videos to estimate size and time, and write nothing."""
    limit_s: float = 600.0
    """Seconds of CPU time of decoding after which a video counts as broken; one that was is tried again under a higher limit."""
    val_fraction: float = 0.2
    """Share of the videos held out for validation where the source names no split."""
    max_broken: float = 0.01
    """Share of videos that may fail to decode: they are left out and listed, above it is an error."""
    videos_per_shard: int = 64
    """Videos in a file of the shards, which one task makes, at most; below 2,048 videos fewer, 8 at least: give less to use more cores."""


@dataclass(frozen=True, kw_only=True)
class ShardsArguments:
    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ACTION")] = ""
    """`info` shows what a folder of shards holds, `verify` reads every file and compares its checksum, and looks for videos that are passed through."""
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = ""
    """Shards from `mgray ingest`, in a folder or at an address such as s3://bucket/shards."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


def _ingest(arguments: Sequence[str]) -> None:
    command = parse(IngestArguments, arguments, INGEST)
    demand("SOURCE", command.source, "mgray ingest SOURCE OUT")
    demand("OUT", command.out, "mgray ingest SOURCE OUT")
    levels = _levels(command)
    from mgray.data.ingest_settings import check_settings

    check_settings(
        levels, val_fraction=command.val_fraction, max_broken=command.max_broken, limit_s=command.limit_s,
        videos_per_shard=command.videos_per_shard,
    )  # fmt: skip
    if command.dry_run:
        from mgray.data.estimate import estimate
        from mgray.display import print_estimate

        found = estimate(
            command.source, levels, val_fraction=command.val_fraction, videos=command.videos, limit_s=command.limit_s
        )
        print_estimate(found, os.cpu_count() or 1)
        return
    from mgray.trainer import ingest_with_progress

    ingest_with_progress(
        command.source,
        command.out,
        levels=levels,
        val_fraction=command.val_fraction,
        videos=command.videos,
        max_broken=command.max_broken,
        limit_s=command.limit_s,
        videos_per_shard=command.videos_per_shard,
    )


def _levels(command: IngestArguments) -> tuple[int, ...]:
    from mgray.data.shards.manifest import SOURCE

    if command.passthrough:
        return SOURCE
    if command.levels == ("auto",):
        from mgray.data.levels import levels_of

        run = workload(command.workload)
        return levels_of(run.plan, run.data.enlarge)
    if command.levels == ("0",):
        raise ConfigError(
            "levels", "0", "is no short side", "give e.g. --levels 256 226 160, or --passthrough to store no copies"
        )
    try:
        return tuple(int(level) for level in command.levels)
    except ValueError:
        raise ConfigError(
            "levels",
            " ".join(command.levels),
            "are no whole numbers",
            "give e.g. --levels 256 226 160, or --levels auto",
        ) from None


def _shards(arguments: Sequence[str]) -> None:
    command = parse(ShardsArguments, arguments, SHARDS)
    if command.action not in ("info", "verify"):
        raise ConfigError(
            "ACTION", command.action, "is no action", "write mgray shards info DIR or mgray shards verify DIR"
        )
    demand("DIR", command.path, f"mgray shards {command.action} DIR")
    from mgray.data.shards.shard_set import ShardSet

    shards = ShardSet.open(command.path)
    if command.action == "verify":
        shards.verify()
        print(f"{command.path}: all files are as they were written")
    elif command.json:
        print(json_module.dumps(shards.summary(), indent=2))
    else:
        from mgray.display import print_shards

        print_shards(shards)


INGEST = Command(
    name="ingest",
    arguments="SOURCE OUT",
    summary="Turn a folder or list of videos into shards that training reads fast.",
    examples=(
        "mgray ingest videos/ shards/ --levels 256 226 160",
        "mgray ingest videos/ shards/ --dry-run",
        "mgray ingest kinetics400/annotations/ shards/ --videos kinetics400/",
        "mgray ingest videos/ index/ --passthrough",
    ),
    run=_ingest,
)


SHARDS = Command(
    name="shards",
    arguments="info|verify DIR",
    summary="Look into ingested shards: `mgray shards info DIR`, or compare all checksums: `mgray shards verify DIR`.",
    examples=(
        "mgray shards info shards/",
        "mgray shards verify shards/",
    ),
    run=_shards,
)
