"""Scores of several views are pooled as numpy pools them, whatever is computed at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mgray.data.clip import Views
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Fault, ValSource
from mgray.errors import ConfigError
from mgray.model.norm import convert_batchnorm
from mgray.train.checkpoint import read_meta
from mgray.train.evaluate import validation_source
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from mgray.train.views import POOLS, VideoScores, pooled, score_views, trained_worker
from tests.support.checkpoints import RUN, write_run
from tests.support.shards import write_shards

CLASSES = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("views"), train=1, val=5, classes=CLASSES, size=(48, 32))


@pytest.fixture
def worker() -> Worker:
    torch.manual_seed(0)
    layers = [nn.BatchNorm3d(3), nn.AdaptiveAvgPool3d((2, 3, 3)), nn.Flatten(), nn.Linear(54, CLASSES)]
    model = convert_batchnorm(nn.Sequential(*layers)).double()
    return Worker(model.eval(), LocalSession(Path("unused")), RUN.data, RUN.train)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_pooling_is_that_of_numpy(pool: str, spread: float) -> None:
    logits_VKC = spread * np.random.default_rng(0).normal(size=(4, 6, 5))
    scores = softmax(logits_VKC)
    want = scores.mean(1) if pool == "mean" else scores.max(1)
    found = pooled(torch.from_numpy(logits_VKC).log_softmax(-1), pool).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-300)
    with pytest.raises(ConfigError, match="pool = 'median'"):
        pooled(torch.zeros(1, 1, 2), "median")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_scores_are_those_of_all_views(shards: ShardSet, worker: Worker, pool: str, batch: int, at_once: int) -> None:
    source = dataclasses.replace(validation_source(RUN, shards), views=Views(clips=2, crops=3), batch=batch)
    parts = list(score_views(worker, LocalSession(Path("unused")), source, pool, at_once))
    found = VideoScores.joined(parts[::-1], 5)
    whole = dataclasses.replace(source, batch=5).block(0, 0, 1)
    with torch.no_grad():
        scores_VKC = softmax(worker.predict(whole).numpy()).reshape(5, 6, CLASSES)
    assert scores_VKC.std(1).max() > 1e-4
    want = scores_VKC.mean(1) if pool == "mean" else scores_VKC.max(1)
    np.testing.assert_allclose(found.scores_VC, want, rtol=1e-9)
    assert found.samples_V.tolist() == list(range(5))
    assert found.labels_V.tolist() == [shards.label("val", sample) for sample in range(5)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_ranks_together_score_each_video_once_with_the_same_result(
    shards: ShardSet, worker: Worker, ranks: int
) -> None:
    source = dataclasses.replace(validation_source(RUN, shards), views=Views(clips=2, crops=1), batch=1)
    parts = [
        part
        for rank in range(ranks)
        for part in score_views(worker, LocalSession(Path("unused"), rank=rank, world_size=ranks), source, "mean", 8)
    ]
    assert sorted(int(sample) for part in parts for sample in part.samples_V) == list(range(5))
    alone = VideoScores.joined(list(score_views(worker, LocalSession(Path("unused")), source, "mean", 8)), 5)
    assert np.array_equal(VideoScores.joined(parts, 5).scores_VC, alone.scores_VC)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_broken_videos_are_left_out_and_the_rest_scored(
    shards: ShardSet, worker: Worker, tmp_path: Path, ranks: int, batch: int
) -> None:
    damaged = write_shards(tmp_path, train=1, val=5, classes=CLASSES, size=(48, 32), damaged=(2, 5))
    found = []
    for videos in (shards, damaged):
        source = dataclasses.replace(validation_source(RUN, videos), views=Views(clips=2, crops=3), batch=batch)
        sessions = [LocalSession(Path("unused"), rank=rank, world_size=ranks) for rank in range(ranks)]
        parts = [part for session in sessions for part in score_views(worker, session, source, "mean", 4)]
        found.append(VideoScores.joined(parts, 5))
    whole, rest = found
    assert rest.samples_V.tolist() == [0, 2, 3] and [sample for sample, _ in rest.broken] == [1, 4]
    assert all("does not decode" in reason for _, reason in rest.broken)
    assert rest.labels_V.tolist() == whole.labels_V[rest.samples_V].tolist()
    np.testing.assert_allclose(rest.scores_VC, whole.scores_VC[rest.samples_V], rtol=1e-12)


def test_a_video_of_which_one_view_is_broken_has_no_score(
    shards: ShardSet, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataclasses.replace(validation_source(RUN, shards), views=Views(clips=2, crops=1), batch=5)
    block = source.block(0, 0, 1)
    assert block is not None
    keep_N = np.arange(10) != 3
    fault = Fault(position=3, sample=1, reason="is torn", substitute=-1)
    torn = dataclasses.replace(
        block, clips_NTHWC=block.clips_NTHWC[keep_N], labels_N=block.labels_N[keep_N], samples_N=block.samples_N[keep_N],
        positions_N=block.positions_N[keep_N], faults=(fault,),
    )  # fmt: skip
    monkeypatch.setattr(ValSource, "block", lambda *_: torn)
    (part,) = score_views(worker, LocalSession(Path("unused")), source, "mean", 8)
    assert part.samples_V.tolist() == [0, 2, 3, 4] and part.broken == ((1, "is torn"),)


def test_a_video_that_is_scored_twice_or_not_at_all_is_noticed() -> None:
    part = VideoScores(samples_V=np.array([0]), labels_V=np.array([0]), scores_VC=np.ones((1, 2)))
    broken = dataclasses.replace(part, broken=((0, "is noise"),))
    for parts in ([part, part], [broken], [part]):
        with pytest.raises(AssertionError, match="twice"):
            VideoScores.joined(parts, 2)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_trained_model_has_the_layout_of_its_run(shards: ShardSet, tmp_path: Path, wanted: bool) -> None:
    """Weights that lie otherwise than clips are moved at every call on a GPU."""
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, channels_last=wanted))
    folder = write_run(tmp_path / "run", shards, run) / "checkpoint_000000007"
    worker = trained_worker(folder, read_meta(folder), LocalSession(tmp_path))
    kernels = [value for value in worker.module.parameters() if value.dim() == 5 and value.shape[2:].numel() > 1]
    assert kernels and all(
        value.is_contiguous(memory_format=torch.channels_last_3d) == wanted for value in kernels if value.shape[1] > 1
    )
