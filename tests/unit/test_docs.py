"""What the documents say can be typed, and the figures that they name are those of the code."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mgray.cli
import mgray.model
from mgray import cli
from mgray.cli.parse import option_names
from mgray.config import Run
from mgray.model.flops import ModelCost
from mgray.plan import Plan
from tests.support.commands import (
    PAGES,
    ROOT,
    anchors_in,
    blocks_in,
    check_parses,
    commands_in,
    links_in,
    tables_in,
    why_not_run,
)
from tests.support.videos import write_tree
from tests.unit.test_pyslowfast import KINETICS
from workloads import WORKLOADS, dataset_of, find

COMMANDS = [
    pytest.param(arguments, id=f"{page.stem}: {' '.join(arguments)[:60]}")
    for page in PAGES
    for arguments in commands_in(page.read_text())
]
DISTINCT = [p for number, p in enumerate(COMMANDS) if p.values not in [other.values for other in COMMANDS[:number]]]
SNIPPETS = [
    pytest.param(block, id=f"{page.stem} {number}")
    for page in PAGES
    for number, block in enumerate(blocks_in(page.read_text(), "python"))
    if "runs/" not in block
]
"""Those about a run are executed in tests/integration/test_docs.py."""
FENCE_WIDTH = 106
"""Columns of a fenced block that GitHub shows without a scroll bar, about."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents take for granted: videos, a PySlowFast file, weights, a search's best run."""
    root = tmp_path_factory.mktemp("docs")
    write_tree(root / "videos", {"left": 3, "right": 3})
    (root / "SLOWFAST_8x8_R50_stepwise.yaml").write_text(KINETICS)
    for name in ("slowfast.pt", "i3d_init.pt", "runs/folder", "search/best.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "search" / "best.json").write_text(json.dumps(Run().to_json()))
    return root


def on_videos(arguments: list[str]) -> list[str]:
    """A command on the tiny videos in place of whatever data it names."""
    changed, before = [], ""
    for word in arguments:
        if before not in ("--data.videos", "--storage") and word not in ("--data.videos", "--storage"):
            changed.append("videos" if before == "--data.path" else word)
        before = word
    return changed


def test_commands_are_found_in_fenced_blocks_only() -> None:
    text = "mgray plan no\n```sh\n$ mgray plan demo  # words\nX=1 mgray train demo \\\n  --name 'a b' | tee log\nmgray: warning\n```\n"
    assert list(commands_in(text)) == [["plan", "demo"], ["train", "demo", "--name", "a b"]]
    assert len(COMMANDS) > 100


def test_commands_that_are_not_run() -> None:
    assert not why_not_run(["train", "folder", "--data.path", "videos/", "--scale.workers", "2"])
    assert not why_not_run(["convert", "runs/folder", "folder.pyth"])
    assert why_not_run(["train", "folder", "--scale.address", "auto"]) == "a cluster or a bucket"
    assert why_not_run(["convert", "SLOWFAST_8x8_R50.pyth", "slowfast.pt"]) == "another library's weights"
    assert why_not_run(["eval", "runs/ssv2_slowfast_r50"]) == "a published dataset"


@pytest.mark.parametrize("arguments", DISTINCT)
def test_commands_parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.chdir(workspace)
    check_parses(arguments, monkeypatch)


@pytest.mark.parametrize("arguments", [p for p in DISTINCT if p.values[0][0] == "train"])
def test_runs_are_accepted(arguments: list[str], monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    """All that `mgray train` refuses before Ray starts."""
    trained: list[Run] = []
    stub = types.ModuleType("mgray.trainer")
    stub.train = lambda run, amendments, verbose: trained.append(run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mgray.trainer", stub)
    monkeypatch.chdir(workspace)
    for name in re.findall(r"runs/\w+", " ".join(arguments)):
        Path(name).touch()
    if "--track" in arguments and importlib.util.find_spec(arguments[arguments.index("--track") + 1]) is None:
        pytest.skip("its package is not installed")
    extra = ["--data.path", "videos"] if "--data.path" not in arguments else []
    assert cli.main([*on_videos(arguments), *extra, "--storage", "storage"]) == 0
    assert len(trained) == 1


@pytest.mark.parametrize(
    "arguments", [p for p in DISTINCT if p.values[0][0] == "plan" and "--step-times" not in p.values[0]]
)
def test_plans_are_printed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    # counting a network's operations takes seconds: tests/unit/model/test_flops.py
    monkeypatch.setattr(ModelCost, "clip_flops", lambda self, shape: 1e6 * shape.voxels)
    assert cli.main(on_videos(arguments)) == 0
    assert "steps" in capsys.readouterr().out


def test_the_table_of_the_concepts_is_that_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    shown = next(block for block in blocks_in(text) if block.startswith("$ mgray plan"))
    command, _, table = shown.partition("\n")
    assert cli.main(command.split()[2:]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.rstrip() for line in table.splitlines()] == lines


def test_options_that_the_text_names_exist() -> None:
    known = {"--help"}
    for module in pkgutil.iter_modules(mgray.cli.__path__):
        for kind in vars(importlib.import_module(f"mgray.cli.{module.name}")).values():
            if dataclasses.is_dataclass(kind) and str(getattr(kind, "__name__", "")).endswith("Arguments"):
                known |= set(option_names(kind, "--"))
    known |= {re.sub(r"^(--(?:\w+\.)?)", r"\1no-", option) for option in known}
    for page in PAGES:
        if page.name != "security.md":  # it names Ray's own
            named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text()))
            assert named <= known, (page.name, named - known)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mgray.model, "MODELS", dict(mgray.model.MODELS))
    _published_kinetics(tmp_path)
    exec(snippet, {"__name__": "snippet"})
    if "k400" in snippet:
        with (tmp_path / "k400" / "lists" / "train.csv").open() as file:
            assert [row["youtube_id"] for row in csv.DictReader(file)] == ["train_there"]


def test_the_clips_that_come_twice_are_replaced(tmp_path: Path) -> None:
    script = next(
        block for block in blocks_in((ROOT / "docs" / "datasets.md").read_text(), "sh") if "replacement" in block
    )
    _published_kinetics(tmp_path)
    (tmp_path / "k400" / "replacement" / "x").mkdir(parents=True)
    (tmp_path / "k400" / "replacement" / "x" / "train_there_000001_000011.mp4").write_text("whole")
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "k400" / "train" / "train_there_000001_000011.mp4").read_text() == "whole"
    assert not (tmp_path / "k400" / "replacement").exists()


def _published_kinetics(root: Path) -> None:
    """Lists with a clip that is there and one that is not."""
    for name in ("annotations", "train", "val"):
        (root / "k400" / name).mkdir(parents=True)
    for side in ("train", "val"):
        rows = [f"x,{clip},1,11,{side}\n" for clip in (f"{side}_there", f"{side}_missing")]
        (root / "k400" / "annotations" / f"{side}.csv").write_text(
            "label,youtube_id,time_start,time_end,split\n" + "".join(rows)
        )
        (root / "k400" / side / f"{side}_there_000001_000011.mp4").touch()


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs" / "log.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem
)
def test_links_and_tables_hold(page: Path) -> None:
    text = page.read_text()
    for target in links_in(text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            other = (page.parent / path) if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors_in(other.read_text()), target
    if page in PAGES:
        assert max((len(line) for block in blocks_in(text) for line in block.splitlines()), default=0) <= FENCE_WIDTH
    for table in tables_in(text):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
        assert len(set(cells)) == 1, table[cells.index(max(cells))]


def test_the_readme_is_short_and_leads_everywhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    assert {path.name for path in PAGES[1:]} <= {Path(target.partition("#")[0]).name for target in links_in(text)}
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)) <= set(targets)


def test_phase_tables_of_the_datasets_are_those_of_the_plans() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+), (\d+) \| ([\dx, ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$",
        (ROOT / "docs" / "datasets.md").read_text(), re.MULTILINE,
    )  # fmt: skip
    assert len(rows) > 20
    for name, epochs, own_epochs, shapes, steps, baseline_steps, voxels in rows:
        run, dataset = find(name), dataset_of(name)
        assert run is not None and dataset is not None, name
        plan = Plan.compile(run.plan, dataset.num_train)
        cost = plan.cost()
        assert (int(epochs), int(own_epochs)) == (run.plan.epochs, plan.num_epochs), name
        found = (f"{plan.num_steps:,}", f"{cost.baseline_steps:,}", f"{cost.voxel_ratio:.2f}")
        assert (steps, baseline_steps, voxels) == found, name
        assert shapes.split(", ") == [*dict.fromkeys(f"{p.base_clips}x{p.frames}x{p.crop}" for p in plan.phases)], name


def test_steps_of_the_datasets_phases_are_those_of_the_plans() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text().partition("## Phases")[2]
    rows = [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*[\d-] \|$", text, re.MULTILINE)]
    told: dict[str, list[list[str]]] = {}
    names: list[str] = []
    for row in rows:
        names = re.findall(r"`(\w+)`", row[0]) or names
        for name in names:
            told.setdefault(name, []).append(row[-6:])
    published = {name for name in WORKLOADS if dataset_of(name) is not None and not name.endswith("_baseline")}
    assert set(told) == published
    for name, stages in told.items():
        run, dataset = find(name), dataset_of(name)
        assert run is not None and dataset is not None
        phases = Plan.compile(run.plan, dataset.num_train).phases
        shapes = [*dict.fromkeys((phase.frames, phase.crop) for phase in phases)]
        found = []
        for stage in dict.fromkeys(phase.stage for phase in phases):
            of = {(p.frames, p.crop): p for p in phases if p.stage == stage}
            first, *_, last = (*of.values(), *of.values())
            steps = [f"{of[shape].num_steps:,}" if shape in of else "-" for shape in shapes]
            found.append([str(stage), f"{first.first_epoch}-{last.end_epoch - 1}", *steps])
        assert stages == found, name
