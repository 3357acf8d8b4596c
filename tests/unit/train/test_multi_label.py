"""Videos with several classes each (Charades): binary cross entropy, mean average precision, sigmoid scores."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from mgray import cli
from mgray.check import check_input
from mgray.config import DataSection, Run, ScaleSection
from mgray.data.annotations import Action
from mgray.data.feed import _blocks_of, _row_of
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block
from mgray.errors import ConfigError, DataError
from mgray.evaluation.predict import Predictor
from mgray.evaluation.run import evaluate_run
from mgray.model.norm import BnGroups
from mgray.plan import Plan
from mgray.report.compare import compare
from mgray.report.records import read_run
from mgray.train.checkpoint import newest_checkpoint, read_meta
from mgray.train.evaluate import evaluate, validation_source
from mgray.train.loop import Loop
from mgray.train.mix import Targets, mix_groups
from mgray.train.scores import figures_of, mean_average_precision, write_predictions
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from mgray.train.views import VideoScores
from tests.support.checkpoints import RUN as SMALL
from tests.support.shards import write_shards

ACTIONS = [
    [Action(label=0, start_s=0.0, end_s=9.0), Action(label=2, start_s=0.0, end_s=9.0)],
    [Action(label=1, start_s=0.0, end_s=9.0)],
    [],
]
RUN = dataclasses.replace(
    SMALL,
    plan=dataclasses.replace(SMALL.plan, long_cycle="run", short_cycle=True, epochs=40, lr_steps=(0, 30), lr=0.01),
    train=dataclasses.replace(SMALL.train, evals=2, eval_batch=2),
    scale=ScaleSection(save_every=100),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("multi"), train=6, val=5, classes=4, actions=ACTIONS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Path:
    """A run's folder as training leaves it."""
    folder = tmp_path_factory.mktemp("trained") / "mine"
    Loop(RUN, LocalSession(folder), shards, folder, 0).train()
    about = {
        "classes": shards.classes,
        "num_train": 6,
        "num_val": 5,
        "digest": "d",
        "shards": shards.root,
        "multi_label": True,
    }
    run, plan = dataclasses.replace(RUN, name="mine").to_json(), Plan.compile(RUN.plan, 6).to_json()
    for name, tree in (("run", run), ("plan", plan), ("data", about)):
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder


def test_the_loss_is_the_mean_binary_cross_entropy_of_the_classes() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(0, 2, (5, 7))
    targets = Targets(labels)
    assert float(targets.loss(logits, 0.0)) / 5 == pytest.approx(float(nn.BCEWithLogitsLoss()(logits, labels.double())))
    assert int(targets.num_right(logits)) == sum(int(labels[i, logits[i].argmax()]) for i in range(5))
    own = torch.full((5,), 0.3, dtype=torch.float64)
    mixed = Targets(labels, labels.roll(1, 0), own)
    soft = 0.3 * labels + 0.7 * labels.roll(1, 0)
    assert float(mixed.loss(logits, 0.0)) / 5 == pytest.approx(float(nn.BCEWithLogitsLoss()(logits, soft)))
    assert int(mixed.num_right(logits)) == int(Targets(labels.roll(1, 0)).num_right(logits))  # the larger part


def test_labels_are_mixed_with_their_clips() -> None:
    clips, labels = torch.randn(4, 3, 1, 2, 2), torch.eye(4, dtype=torch.int64)
    train = dataclasses.replace(RUN.train, mixup=0.8)
    _, targets = mix_groups(clips, labels, BnGroups((2, 2)), [0, 2], train)
    assert targets.partners_N is not None
    assert targets.partners_N.tolist() == labels[[1, 0, 3, 2]].tolist()


SCORES_VC = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.6, 0.3], [0.1, 0.2, 0.4]])
LABELS_VC = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
AP = ((1 + 2 / 3) / 2, (1 + 2 / 3) / 2)
"""Of the first two classes; no video shows the third."""


def test_mean_average_precision_of_a_case_done_by_hand() -> None:
    scores, labels = torch.from_numpy(SCORES_VC), torch.from_numpy(LABELS_VC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_average_precision(scores, labels) == pytest.approx(sum(AP) / 2)
    order = torch.tensor([2, 0, 3, 1])
    assert mean_average_precision(scores[order], labels[order]) == mean_average_precision(scores, labels)
    assert mean_average_precision(scores, torch.zeros_like(labels)) == 0.0


def test_figures_have_no_accuracy(tmp_path: Path) -> None:
    found = VideoScores(samples_V=np.arange(4), labels_V=LABELS_VC, scores_VC=SCORES_VC)
    figures = figures_of(found, ("a", "b", "c"))
    assert figures.mean_average_precision == pytest.approx(sum(AP) / 2)
    assert figures.loss == pytest.approx(-np.log(np.where(LABELS_VC > 0, SCORES_VC, 1 - SCORES_VC)).mean())
    tree = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    assert list(tree) == ["map", "loss", "classes"]
    assert [(row["class"], row["support"]) for row in tree["classes"]] == [("a", 2), ("b", 2), ("c", 0)]
    write_predictions(found, ["1", "2", "3", "4"], ("a", "b", "c"), tmp_path / "p.parquet")
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["labels"] for row in rows] == [["a"], ["b"], ["a"], ["b"]] and rows[0]["predicted"] == "a"


@pytest.mark.parametrize("batch", [1, 5])
def test_validation_scores_all_videos_by_all_their_classes(shards: ShardSet, batch: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool3d((1, 3, 3)), nn.Flatten(), nn.Linear(27, 4)).double()
    worker = Worker(model, LocalSession(Path("unused")), RUN.data, RUN.train)
    source = dataclasses.replace(validation_source(RUN, shards), batch=batch)
    scores = evaluate(worker, LocalSession(Path("unused")), source).scores
    whole = dataclasses.replace(source, batch=5).block(0, 0, 1)
    assert whole is not None
    labels = torch.from_numpy(whole.labels_N)
    assert labels.tolist() == [[[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]][i % 3] for i in range(6, 11)]
    with torch.no_grad():
        logits = worker.predict(whole)
    assert scores == {
        "map": pytest.approx(mean_average_precision(logits.sigmoid(), labels), rel=1e-6),
        "loss": pytest.approx(float(nn.BCEWithLogitsLoss()(logits, labels.double())), rel=1e-6),
        "num_clips": 5,
    }


def test_a_run_is_recorded_by_its_mean_average_precision(trained: Path) -> None:
    records = read_run(trained)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    evals = [line for line in lines if line["kind"] == "eval"]
    assert records.metric == "mAP" and len(records.evals) == 2
    assert [record.score for record in records.evals] == [line["map"] for line in evals]
    assert all("top1" not in line and 0 <= line["map"] <= 1 for line in evals)
    comparison = compare([records])
    assert comparison.metric == "mAP" and " mAP in " in comparison.headline() and "top-1" not in comparison.headline()
    assert {row.label for row in comparison.rows()} >= {"final mAP", "best mAP"}
    assert not any("Accuracy" in note for note in comparison.notes())


def test_evaluation_pools_sigmoids_by_their_maximum(
    trained: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_meta(newest_checkpoint(trained)).multi_label
    result = evaluate_run(str(trained))
    assert result.pool == "max" and result.found.labels_V.shape == (5, 4)
    assert result.figures.mean_average_precision == pytest.approx(read_run(trained).evals[-1].score, abs=1e-6)
    with pytest.raises(DataError, match="has other classes"):
        evaluate_run(str(trained), data=write_shards(tmp_path, train=1, val=1, classes=4).root)
    assert cli.main(["eval", str(trained), "--views", "2x1", "--per-class"]) == 0
    out = capsys.readouterr().out
    assert "mAP" in out and "max of the scores" in out and "top-1" not in out
    assert cli.main(["eval", str(trained), "--plot", str(tmp_path / "c.png")]) == 2
    assert "has several classes a video" in capsys.readouterr().err


def test_predictions_are_sigmoids(trained: Path, shards: ShardSet) -> None:
    predictor = Predictor.load(str(trained))
    found = predictor.predict(str(Path(shards.root).parent / "0.mp4"))
    assert predictor.multi_label
    best = {}
    for window in found.windows:
        for item in window.top:
            best[item.name] = max(best.get(item.name, 0.0), item.score)
    assert all(item.score == pytest.approx(best[item.name]) for item in found.top if item.name in best)
    assert sum(item.score for item in found.top) != pytest.approx(1.0, abs=1e-3)


def test_label_smoothing_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, data=DataSection(path=shards.root), storage=str(tmp_path))
    check_input(run)
    with pytest.raises(ConfigError, match="does not go with videos of several classes"):
        check_input(dataclasses.replace(run, train=dataclasses.replace(run.train, label_smoothing=0.1)))


def test_labels_cross_ray_in_their_shape() -> None:
    def block(index: int, clips: int, labels: np.ndarray) -> Block:
        pixels = np.full((clips, 1, 2, 2, 3), index, np.uint8)
        return Block(index, 0, pixels, labels, np.arange(clips), 10 * np.arange(clips))

    import pyarrow as pa

    for kinds in (
        (np.array([[1, 0, 1], [0, 0, 1]]), np.array([[0, 1, 0]])), (np.array([3, 1]), np.array([2])), (np.array([[1], [0]]), np.array([[1]])),
    ):  # fmt: skip
        blocks = [block(0, 2, kinds[0]), None, block(2, 1, kinds[1])]
        row = _row_of([0, 1, 2], blocks)
        table = pa.table(
            {
                name: pa.array([value[0].reshape(-1)])
                if name not in ("headers", "faults")
                else [np.asarray(value[0]).tolist()]
                for name, value in row.items()
            }
        )
        back = list(_blocks_of(table))
        assert back[1] is None
        for ours, theirs in zip((back[0], back[2]), (blocks[0], blocks[2]), strict=True):
            assert ours is not None and theirs is not None
            assert np.array_equal(ours.labels_N, theirs.labels_N) and ours.labels_N.shape == theirs.labels_N.shape
            assert np.array_equal(ours.clips_NTHWC, theirs.clips_NTHWC)


def test_a_run_of_one_class_a_video_is_as_it_was(tmp_path: Path) -> None:
    assert Run().digest() == dataclasses.replace(Run(), data=DataSection(videos="elsewhere")).digest()
    assert Run().digest() != dataclasses.replace(Run(), data=DataSection(sampling="segments")).digest()
