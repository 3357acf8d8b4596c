"""A published dataset from its lists to its figures, on Ray: Charades' lists, several classes a video."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.data.decode.encode import encode_frames
from mgray.data.shards.shard_set import ShardSet
from mgray.evaluation.run import Viewing, evaluate_run
from mgray.plan import PlanSpec
from mgray.report.records import read_run
from mgray.train.loop import Loop
from mgray.train.session import LocalSession
from mgray.trainer import train

pytestmark = pytest.mark.ray
HEAD = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
RUN = Run(
    plan=PlanSpec(
        frames=4, crop=32, batch=4, stride=1, jitter_min=36, jitter_max=44, epochs=8, lr_steps=(0, 6), lr_factors=(1.0, 0.1),
        lr=0.01, long_cycle="run", short_cycle=True, bn_group=4,
    ),
    data=DataSection(levels=(40,), sampling="segments", jitter="inverse"),
    model=ModelSection(name="slowfast", depth=10, width=8, fusion_kernel=3, dropout=0.0),
    train=TrainSection(evals=2, eval_batch=2, precise_bn=1, mixup=0.8, precision="float64"),
)  # fmt: skip


@pytest.fixture(scope="module")
def charades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 videos to train on and 5 to validate on, 48x40 pixels: the brighter shows c000, every other c001 for its second half."""
    root = tmp_path_factory.mktemp("charades")
    for folder in ("Charades", "Charades_v1_480"):
        (root / folder).mkdir()
    for side, first, count in (("train", 0, 12), ("test", 50, 5)):
        rows = []
        for number in range(first, first + count):
            # no two alike: near ties among so few would turn mean average precision on rounding
            shade, light = (140 if number % 3 else 20) + 16 * (number % 5), np.linspace(0, 3 * (number % 7), 48)
            pictures = shade + np.arange(20)[:, None, None, None] + light[None, None, :, None] + np.zeros((1, 40, 1, 3))
            pictures = pictures.astype(np.uint8)
            encode_frames(str(root / "Charades_v1_480" / f"V{number:03d}.mp4"), pictures, fps=25)
            actions = [*(["c000 0.00 0.80"] if number % 3 else []), *(["c001 0.40 0.80"] if number % 2 else [])]
            rows.append(f'V{number:03d},S,Room,6,7,Yes,"a, b",o,d,{";".join(actions)},0.80\n')
        (root / "Charades" / f"Charades_v1_{side}.csv").write_text(HEAD + "".join(rows))
    (root / "Charades" / "Charades_v1_classes.txt").write_text("c000 Brightening a room\nc001 Standing up\n")
    return root


@pytest.mark.slow
def test_from_lists_to_figures_on_two_workers_as_in_one_process(
    ray_instance: None, charades: Path, tmp_path: Path
) -> None:
    data = dataclasses.replace(RUN.data, path=str(charades / "Charades"), videos=str(charades / "Charades_v1_480"))
    run = dataclasses.replace(RUN, name="two", storage=str(tmp_path), data=data, scale=ScaleSection(workers=2))
    result = train(run)
    assert result.metric == "mAP" and 0 < result.score <= 1
    two = read_run(result.folder)
    assert two.metric == "mAP" and two.data is not None and two.data.classes == ("Brightening a room", "Standing up")
    (folder,) = (tmp_path / "shards").iterdir()
    shards = ShardSet.open(str(folder))
    assert shards.multi_label and (shards.num_samples("train"), shards.num_samples("val")) == (12, 5)
    Loop(run, LocalSession(tmp_path / "one"), shards, tmp_path / "one", 0).train()
    for name in ("run.json", "plan.json", "data.json"):
        (tmp_path / "one" / name).write_bytes((result.folder / name).read_bytes())
    one = read_run(tmp_path / "one")
    assert two.steps.loss == pytest.approx(one.steps.loss, rel=1e-4)
    assert [e.score for e in two.evals] == pytest.approx([e.score for e in one.evals], rel=1e-4)
    here, spread = (evaluate_run(str(result.folder), Viewing(workers=workers)) for workers in (0, 2))
    assert here.pool == spread.pool == "max"
    assert here.figures.mean_average_precision == pytest.approx(two.evals[-1].score, rel=1e-4)
    assert np.array_equal(here.found.labels_V, spread.found.labels_V)
    assert spread.found.scores_VC == pytest.approx(here.found.scores_VC, rel=1e-5)
