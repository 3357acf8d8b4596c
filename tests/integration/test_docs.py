"""The documents from top to bottom on a tiny folder of videos: their own command lines, made small by options at the end."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgray import cli
from mgray.control import DRIVER
from mgray.report.records import read_run
from tests.support.commands import PAGES, ROOT, blocks_in, commands_in, why_not_run
from tests.support.videos import write_tree

pytestmark = pytest.mark.ray
SMALL = [
    "--model.depth",
    "10",
    "--model.width",
    "8",
    "--model.fusion-kernel",
    "3",
    "--model.dropout",
    "0",
    "--plan.frames",
    "4",
    "--plan.crop",
    "32",
    "--plan.jitter-min",
    "36",
    "--plan.jitter-max",
    "44",
    "--plan.stride",
    "1",
    "--plan.batch",
    "4",
    "--plan.bn-group",
    "2",
    "--plan.epochs",
    "6",
    "--plan.lr-steps",
    "0",
    "3",
    "4",
    "5",
    "--plan.warmup-epochs",
    "0",
    "--plan.lr",
    "0.001",
    "--train.evals",
    "2",
    "--train.precision",
    "float32",
    "--data.levels",
    "32",
]
"""After the options of a document, of which the last counts."""
TRAINED = {
    "README": ("folder", "folder_baseline"),
    "your-data": ("from_shards", "from_index"),
}
"""Runs by page; others are the same loop with other settings, and are checked in tests/unit/test_docs.py."""
ALL = {name for names in TRAINED.values() for name in names}


@pytest.fixture(scope="module")
def workspace(ray_instance: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("docs")
    write_tree(root / "videos", {"left": 5, "right": 5})
    shutil.copy(root / "videos" / "left" / "0.mp4", root / "video.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def run_name(arguments: list[str]) -> str:
    """The run that a `mgray train` line trains."""
    return arguments[arguments.index("--name") + 1] if "--name" in arguments else arguments[1]


def runnable(page: str) -> list[list[str]]:
    """A page's commands that run here, each once."""
    found: list[list[str]] = []
    path = ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"
    for arguments in commands_in(path.read_text()):
        wanted = arguments[0] not in ("train", "ctl") or (
            arguments[0] == "train" and run_name(arguments) in TRAINED.get(page, ())
        )
        measured = arguments[0] != "plan" or "--step-times" in arguments
        named = {word.removeprefix("runs/") for word in arguments[1:] if word.startswith("runs/")}
        if wanted and measured and named <= ALL and not why_not_run(arguments) and arguments not in found:
            found.append(arguments)
    return found


def test_the_pages_in_order(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """README, then data, report and model: trained, planned from measured times, scored, audited, converted."""
    done: list[list[str]] = []
    for page in ("README", "your-data", "report", "your-model", "tuning"):
        for arguments in runnable(page):
            if arguments in done:
                continue
            small = {"train": SMALL, "plan": SMALL[:6]}.get(arguments[0], [])
            assert cli.main([*arguments, *small]) == 0, (page, arguments, capsys.readouterr().err)
            done.append(arguments)
    heads = {arguments[0] for arguments in done}
    assert heads >= {"plan", "train", "report", "eval", "predict", "audit", "ingest", "shards", "convert"}
    records = [read_run(workspace / "runs" / name) for names in TRAINED.values() for name in names]
    assert all(record.is_finished and record.best_score is not None for record in records)
    # shards and packet tables hold the same samples, in the same order
    assert len({tuple(record.steps.step) for record in records if record.name.startswith("from_")}) == 1
    for name in ("report/report.html", "confusion.png", "scores.parquet", "folder.pyth"):
        assert (workspace / name).stat().st_size > 1000
    assert "each exactly once" in capsys.readouterr().out
    snippet = next(block for block in blocks_in((ROOT / "docs" / "report.md").read_text(), "python"))
    found: dict[str, object] = {}
    exec(snippet, found)
    assert found["records"].best_score is not None  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_requests_of_the_elastic_page(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of 1:2 workers that is asked for everything, stopped, taken up again, stopped and audited."""
    lines = list(commands_in((ROOT / "docs" / "elastic.md").read_text()))
    train = next(line for line in lines if line[0] == "train" and "1:2" in line)
    requests = [line for line in lines if line[0] == "ctl"]
    assert [line[2] for line in requests] == ["status", "checkpoint", "rate", "extend", "advance", "resize", "stop"]
    elsewhere = ["--storage", str(workspace / "elastic")]
    folder = workspace / "elastic" / "folder"
    statuses: list[int] = []

    def ask(wanted: list[list[str]]) -> None:
        deadline = time.monotonic() + 60
        while not (folder / DRIVER).is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        statuses.extend(cli.main([*line, *elsewhere]) for line in wanted)

    for wanted in (requests, requests[-1:]):
        thread = threading.Thread(target=ask, args=(wanted,))
        thread.start()
        assert cli.main([*train, *SMALL, *elsewhere, "--plan.epochs", "4000", "--plan.lr-steps", "0", "3000"]) == 0
        thread.join()
    assert statuses == [0] * (len(requests) + 1), capsys.readouterr().err
    kinds = [kind for kind, *_ in json.loads((folder / "schedule.json").read_text())["amendments"]]
    assert kinds == ["rate", "extend", "advance"]
    records = read_run(folder)
    assert [e.detail for e in records.events if e.event == "leave"] == ["resize", "stop", "stop"]
    assert not records.num_repeated
    assert cli.main(["audit", str(folder)]) == 0


FEWER = {
    "tune": ["--trials", "2"],
    "bench feed": ["--quick"],
    "bench quality": ["--clips", "1"],
    "bench norm": ["--rounds", "1"],
    "bench loop": ["--rounds", "1"],
    "bench scale": ["--steps", "32"],
}
"""What makes a command shorter and leaves it what it is."""


@pytest.mark.slow
def test_the_other_commands(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs no cluster, GPU, published data or weights, and no minutes each: every way to train, a search and its best, the benches."""
    lines = [line for page in PAGES for line in commands_in(page.read_text())]
    done: list[list[str]] = []
    for head in ("train folder", "train folder_baseline", "report", "tune folder", "train search", "bench"):
        for line in lines:
            elsewhere = why_not_run(line) not in ("", "minutes") or {"cuda", "demo", "runs/demo", "mlflow"} & {*line}
            if not " ".join(line).startswith(head) or elsewhere or line in done or "kinetics400_slowfast_r50" in line:
                continue
            small = SMALL if line[0] == "tune" or line[1].startswith("folder") else []
            # a network of its own that a line names is kept
            if "--model.name" in line or "--model.depth" in line:
                small = small[small.index("--plan.frames") :]
            fewer = FEWER.get(line[0], FEWER.get(" ".join(line[:2]), []))
            assert cli.main([*line, *small, *fewer]) == 0, (line, capsys.readouterr().err)
            done.append(line)
    assert {line[0] for line in done} == {"train", "report", "tune", "bench"}
    assert read_run(workspace / "runs" / "folder_tuned").is_finished
    assert {line[1] for line in done if line[0] == "bench"} == {"feed", "quality", "loop", "norm", "scale"}
