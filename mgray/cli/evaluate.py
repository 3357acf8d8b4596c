"""`mgray eval` and `mgray predict`: what a trained model is worth, and what it sees."""

from __future__ import annotations

import json as json_module
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mgray.cli.parse import EXIT_BAD_INPUT, Command, demand, parse
from mgray.errors import ConfigError, VideoError


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """A run's folder (its newest checkpoint), or one checkpoint of it."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Other shards to evaluate on; default: those the run was trained on."""
    views: Annotated[str, tyro.conf.arg(metavar="CLIPSxCROPS")] = "1x1"
    """Clips spread over each video, times 1 centre crop or 3 along the longer side, e.g. 10x3; their scores are pooled."""
    pool: typing.Literal["auto", "mean", "max"] = "auto"
    """A video's scores: the mean or the maximum of its views' scores; auto takes the maximum where videos have several classes."""
    short_side: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 0
    """Short side that videos are resized to before they are cropped; 0 is plan.jitter_min (the crop, where that is larger)."""
    crop: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = 0
    """Width and height of a crop; 0 is plan.crop."""
    workers: int = 0
    """Ray tasks that share the videos, with the same result; 0 evaluates in this process."""
    max_broken: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Share of the videos that may be broken: they are left out and listed. Default: the run's data.max_broken."""
    per_class: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print accuracy, average precision and number of videos of each class too, the worst first."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the confusion matrix into this file (.png, .svg or .pdf)."""
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write each video's class and its five likeliest ones into this Parquet file."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = ""
    """A run's folder (its newest checkpoint), or one checkpoint of it."""
    videos: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO [VIDEO ...]")] = ()
    """Video files."""
    every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0
    """From the beginning of a clip to that of the next; 0 sets them end to end."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of lines."""


def _eval(arguments: Sequence[str]) -> None:
    command = parse(EvalArguments, arguments, EVAL)
    demand("RUN", command.run, "mgray eval RUN")
    from mgray.data.clip import Views

    views = Views.parse(command.views)
    from mgray.evaluation.run import Viewing, check_confusion, check_output, evaluate_run
    from mgray.evaluation.view import print_evaluation, progress_bar
    from mgray.report.confusion import plot_confusion
    from mgray.report.picture import check_picture
    from mgray.train.scores import confusion, write_predictions

    viewing = Viewing(
        views=views, pool=command.pool, short_side=command.short_side, crop=command.crop, workers=command.workers,
        max_broken=command.max_broken,
    )  # fmt: skip
    if command.plot is not None:
        check_picture(command.plot)
        check_confusion(command.run)
    if command.predictions is not None:
        check_output("predictions", command.predictions)
    with progress_bar("evaluate") as show:
        result = evaluate_run(command.run, viewing, data=command.data, on_progress=show)
    for path, reason in result.broken:
        print(f"mgray: warning: {path} was left out: {reason}", file=sys.stderr)
    if command.plot is not None:
        plot_confusion(confusion(result.found, len(result.classes)), result.classes, command.plot)
    if command.predictions is not None:
        write_predictions(result.found, result.paths, result.classes, command.predictions, result.broken)
    if command.json:
        print(json_module.dumps(result.to_json(), indent=2))
    else:
        print_evaluation(result, per_class=command.per_class)


def _predict(arguments: Sequence[str]) -> None:
    command = parse(PredictArguments, arguments, PREDICT)
    demand("CHECKPOINT", command.checkpoint, "mgray predict CHECKPOINT VIDEO [VIDEO ...]")
    demand("VIDEO", command.videos, "mgray predict CHECKPOINT VIDEO [VIDEO ...]")
    if not 0 <= command.every < float("inf"):
        raise ConfigError("every", command.every, "must not be negative", "give seconds, e.g. 0.5")
    from mgray.evaluation.predict import Predictor
    from mgray.evaluation.view import print_prediction, progress_bar

    predictor = Predictor.load(command.checkpoint)
    trees: list[dict[str, Any]] = []
    failed = False
    for video in command.videos:
        try:
            with progress_bar(Path(video).name) as show:
                found = predictor.predict(video, every_s=command.every, on_progress=show)
        except VideoError as error:
            failed = True
            print(f"mgray: {error}", file=sys.stderr)
            trees.append({"video": video, "error": error.problem})
            continue
        if command.json:
            trees.append(found.to_json())
        else:
            print_prediction(found)
    if command.json:
        print(json_module.dumps(trees, indent=2))
    if failed:
        raise SystemExit(EXIT_BAD_INPUT)


EVAL = Command(
    name="eval",
    arguments="RUN",
    summary="Score a run's newest checkpoint, or the one given, on its validation videos.",
    examples=(
        "mgray eval runs/folder --views 10x3",
        "mgray eval runs/folder --workers 4 --per-class --plot confusion.png --predictions predictions.parquet",
    ),
    run=_eval,
)


PREDICT = Command(
    name="predict",
    arguments="CHECKPOINT VIDEO [VIDEO ...]",
    summary="Say what videos show over time, by a run's newest checkpoint or the one given.",
    examples=(
        "mgray predict runs/folder video.mp4",
        "mgray predict runs/folder videos/*.mp4 --every 0.5 --json",
    ),
    run=_predict,
)
