"""The command line: what each command does with its arguments, and one line for what cannot work."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mgray import cli
from mgray.check import check_run
from mgray.cli.bench import BENCHES, BenchArguments, BenchFeedArguments, BenchNormArguments, BenchStepArguments
from mgray.cli.convert import ConvertArguments
from mgray.cli.ctl import CtlArguments
from mgray.cli.demo import DemoArguments
from mgray.cli.evaluate import EvalArguments, PredictArguments
from mgray.cli.ingest import IngestArguments, ShardsArguments
from mgray.cli.main import COMMANDS
from mgray.cli.parse import option_names
from mgray.cli.plan import PlanArguments
from mgray.cli.report import ReportArguments
from mgray.cli.train import TrainArguments
from mgray.cli.tune import TuneArguments
from mgray.config import Run
from mgray.data.clip import Views
from mgray.evaluation.run import Viewing
from mgray.plan import Plan
from mgray.plan.state import Amendment, ScheduleState
from mgray.report.command import options
from tests.support.pyslowfast import random_state, shapes
from tests.support.shards import write_shards
from tests.support.videos import write_tree
from tests.unit.test_pyslowfast import KINETICS
from workloads import WORKLOADS


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(KINETICS)
    return str(path)


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    return tree


def test_no_arguments_teach(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in text
        assert f"mgray {command}" in text
    assert all(name.removesuffix("_baseline") in text for name in WORKLOADS)
    assert max(map(len, text.splitlines())) <= 80


def test_a_usage_line_names_each_argument_once(capsys: pytest.CaptureFixture[str]) -> None:
    for command, start in (
        ("report", "usage: mgray report [-h] RUN [RUN ...]"),
        ("ctl", "usage: mgray ctl [-h] RUN ACTION [VALUE]"),
        ("train", "usage: mgray train NAME [-h]"),
        ("plan", "usage: mgray plan [NAME] [-h]"),
        ("bench", "usage: mgray bench BENCHMARK [...]"),
    ):
        assert cli.main([command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(start)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(example in text for example in COMMANDS[command].examples)
    assert "\x1b[" not in text


def test_the_surface_changes_on_purpose_only() -> None:
    assert list(COMMANDS) == [
        "plan",
        "ingest",
        "shards",
        "train",
        "ctl",
        "eval",
        "predict",
        "convert",
        "report",
        "audit",
        "bench",
        "tune",
        "demo",
    ]
    own = {kind: [option for option in option_names(kind, "--") if "." not in option] for kind in (
        PlanArguments, IngestArguments, ShardsArguments, TrainArguments, CtlArguments, EvalArguments, PredictArguments, ConvertArguments, ReportArguments,
        BenchArguments, BenchFeedArguments, BenchStepArguments, BenchNormArguments, TuneArguments, DemoArguments,
    )}  # fmt: skip
    assert list(own.values()) == [
        [
            "--overrides",
            "--pyslowfast",
            "--json",
            "--plot",
            "--gpus",
            "--step-times",
            "--decode-rate",
            "--cores",
            "--device-cores",
            "--tflops",
            "--network-gbit",
            "--latency-us",
            "--node-gpus",
            "--node-gbit",
            "--node-latency-us",
            "--optimise",
        ],
        [
            "--source",
            "--out",
            "--videos",
            "--levels",
            "--workload",
            "--passthrough",
            "--dry-run",
            "--limit-s",
            "--val-fraction",
            "--max-broken",
            "--videos-per-shard",
        ],
        ["--action", "--path", "--json"],
        ["--name", "--storage", "--track", "--verbose"],
        ["--run", "--action", "--value", "--at-step", "--storage", "--json"],
        [
            "--run",
            "--data",
            "--views",
            "--pool",
            "--short-side",
            "--crop",
            "--workers",
            "--max-broken",
            "--per-class",
            "--plot",
            "--predictions",
            "--json",
        ],
        ["--checkpoint", "--videos", "--every", "--json"],
        ["--source", "--out", "--model"],
        ["--runs", "--out"],
        ["--workload", "--workers", "--rounds"],
        ["--data", "--spans", "--levels", "--enlarge", "--quick", "--json", "--plot", "--ray", "--gop"],
        ["--workload", "--model", "--device", "--share", "--scale-down", "--rounds", "--compile", "--budget", "--json"],
        ["--device", "--rounds", "--json"],
        [
            "--name",
            "--storage",
            "--track",
            "--space",
            "--trials",
            "--objective",
            "--budget",
            "--target-top1",
            "--scheduler",
            "--concurrent",
            "--out",
            "--verbose",
        ],
        ["--data", "--out"],
    ]


def test_help_lists_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "train"):
        assert cli.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(name.removesuffix("_baseline") in text for name in WORKLOADS)


def test_plan_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "kinetics400_slowfast_r50"]) == 0
    text = capsys.readouterr().out
    assert "1024/512/512" in text and "0.001..0.0001" in text
    assert "predicted speed-up: 3.43x by voxels, 3.42x by steps" in text
    assert "\x1b[" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_plan_json(capsys: pytest.CaptureFixture[str]) -> None:
    tree = plan_json(capsys, "kinetics400_slowfast_r50")
    assert [phase["last_epoch"] for phase in tree["phases"]][:3] == [72, 109, 141]
    assert tree["totals"]["num_epochs"] == 358
    assert tree["num_samples"] == 240_436


def test_plan_options_apply_over_the_workload(capsys: pytest.CaptureFixture[str]) -> None:
    tree = plan_json(capsys, "kinetics400_slowfast_r50", "--plan.epoch-factor", "1.0", "--data.num-samples", "5000")
    assert (tree["totals"]["num_epochs"], tree["num_samples"]) == (239, 5000)


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--data.num-samples", "500"],
        ["--data.num-samples", "500", "demo"],
        ["--data.num_samples=500", "demo"],
        ["--data.num-samples=500", "--plan.no-short-cycle", "demo"],
        ["--data.num-samples=500", "--json", "demo"],
    ],
)
def test_name_may_follow_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    tree = plan_json(capsys, *arguments)
    assert (tree["phases"][-1]["frames"], tree["num_samples"]) == (WORKLOADS["demo"]().plan.frames, 500)


def test_plan_reads_pyslowfast(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    tree = plan_json(capsys, "--pyslowfast", config, "--data.num-samples", "240436")
    assert tree["totals"]["num_steps"] == pytest.approx(261_991, rel=0.005)
    assert tree["totals"]["step_ratio"] == pytest.approx(3.43, abs=0.01)
    tree = plan_json(capsys, f"--pyslowfast={config}", "MULTIGRID.EPOCH_FACTOR", "1.0", "SOLVER.BASE_LR", "0.2")
    assert tree["totals"]["num_epochs"] == 239
    assert tree["phases"][0]["lr"] == pytest.approx(1.6)
    tree = plan_json(capsys, "--pyslowfast", config, "MULTIGRID.EPOCH_FACTOR", "1.0", "--plan.lr", "0.3")
    assert tree["phases"][0]["lr"] == pytest.approx(2.4)


def test_plan_options_are_checked_over_the_file_not_over_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("SOLVER: {STEPS: [0, 20], MAX_EPOCH: 30}\nMULTIGRID: {LONG_CYCLE: true}")
    tree = plan_json(capsys, "--pyslowfast", str(path), "--plan.epochs", "40", "MULTIGRID.EPOCH_FACTOR", "1.0")
    assert tree["totals"]["num_epochs"] == 40
    assert cli.main(["plan", "--pyslowfast", str(path), "solver.base_lr", "1"]) == 2
    assert "solver.base_lr" in capsys.readouterr().err


def test_plan_counts_the_clips_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 6), ("val", 2)):
        for label in ("jump", "run"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.mp4").touch()
    assert plan_json(capsys, "smoke", "--data.path", str(tmp_path))["num_samples"] == 12


def test_plan_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "plan.png"
    assert cli.main(["plan", "smoke", "--plot", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_plan_predicts_time_from_measured_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = tmp_path / "times.json"
    times.write_text('{"64x32x224x224": 1.0, "128x32x158x158": 1.0, "256x32x112x112": 1.0}')
    tiny = ["--model.depth", "10", "--model.width", "8", "--data.num-samples", "2000", "--plan.short-cycle"]
    arguments = ["plan", "kinetics400_slowfast_r50_baseline", *tiny, "--step-times", str(times)]
    found = plan_json(capsys, *arguments[1:], "--json")
    assert found["forecast"]["speed_up"] == pytest.approx(found["totals"]["step_ratio"], rel=1e-3)
    assert found["forecast"]["gpus"] == 1
    twice = plan_json(capsys, *arguments[1:], "--gpus", "2", "--plan.batch-policy", "per_worker", "--json")
    for name in ("num_steps", "baseline_steps"):
        assert twice["totals"][name] == pytest.approx(found["totals"][name] / 2, rel=0.1)
    assert cli.main([*arguments, "--gpus", "2", "--decode-rate", "100", "--cores", "4", "--optimise"]) == 0
    shown = capsys.readouterr().out
    assert "2 device(s):" in shown and "ACCURACY IS NOT PREDICTED" in shown and "--plan.long-factors" in shown
    assert max(map(len, shown.partition("device(s)")[0].splitlines())) <= 120
    assert "as they are" in shown and "the paper's" in shown  # this plan has no long cycle


def fake_module(monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> list[tuple[tuple[Any, ...], dict]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*values: Any, **named: Any) -> dict[str, Any]:
        calls.append((values, named))
        return {}

    fake = types.ModuleType(module)
    setattr(fake, function, record)
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


def test_train_passes_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    assert cli.main(["train", "smoke", "--plan.epoch-factor", "2.0", "--scale.workers", "2", "--verbose"]) == 0
    smoke = WORKLOADS["smoke"]()
    want = dataclasses.replace(
        smoke,
        plan=dataclasses.replace(smoke.plan, epoch_factor=2.0),
        scale=dataclasses.replace(smoke.scale, workers=2),
    )
    assert calls == [((want,), {"amendments": None, "verbose": True})]


def test_fine_tuning_without_weights_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    for options_, noted in (([], True), (["--model.init", "k400.pt"], False)):
        assert cli.main(["train", "ssv2_slowfast_r50", *options_]) == 0
        assert ("give them as --model.init, or train ssv2_slowfast_r50_scratch" in capsys.readouterr().err) == noted
    assert len(calls) == 2


@pytest.mark.parametrize("name", [name for name in WORKLOADS if "i3d" not in name])
def test_a_run_survives_the_command_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The command that the report prints trains the same run."""
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    run = WORKLOADS[name]()
    assert cli.main(["train", "folder", *options(run)]) == 0
    assert calls[0][0] == (run,)


def test_train_takes_a_run_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataclasses.replace(WORKLOADS["smoke"](), name="tuned")
    (tmp_path / "best.json").write_text(json.dumps(run.to_json()))
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    assert cli.main(["train", str(tmp_path / "best.json"), "--train.seed", "3"]) == 0
    ((given,), _) = calls[0]
    assert given == dataclasses.replace(run, train=dataclasses.replace(run.train, seed=3))


def test_a_run_begins_with_the_amendments_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataclasses.replace(WORKLOADS["smoke"](), name="tuned", storage=str(tmp_path))
    state = ScheduleState(Plan.compile(run.plan, 100).digest(), (Amendment("rate", 3, 0.5, "pbt-1-rate"),))
    (tmp_path / "best.json").write_text(json.dumps({**run.to_json(), "amendments": state.to_json()}))
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    assert cli.main(["train", str(tmp_path / "best.json"), "--name", "x"]) == 0
    assert calls[0][0] == (dataclasses.replace(run, name="x"),)
    assert calls[0][1]["amendments"] == state


def test_amendments_are_not_brought_into_a_run_that_was_begun_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dataclasses.replace(WORKLOADS["smoke"](), name="tuned", storage=str(tmp_path))
    state = ScheduleState(Plan.compile(run.plan, 100).digest(), (Amendment("rate", 3, 0.5, "pbt-1-rate"),))
    (tmp_path / "best.json").write_text(json.dumps({**run.to_json(), "amendments": state.to_json()}))
    calls = fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run.to_json()))
    for own, status in ((None, 2), (ScheduleState(state.plan_digest), 2), (state, 0)):
        if own is not None:
            (folder / "schedule.json").write_text(json.dumps(own.to_json()))
        assert cli.main(["train", str(tmp_path / "best.json")]) == status
        said = capsys.readouterr().err
        assert ("name = 'tuned': is a run without the amendments" in said) == bool(status)
    longer = state.amended(Amendment("stop", 9))  # asked of it later
    (folder / "schedule.json").write_text(json.dumps(longer.to_json()))
    assert cli.main(["train", str(tmp_path / "best.json")]) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("amendments", [[], {"plan": "x"}, {"plan": "x", "amendments": [[]]}, 3])
def test_amendments_that_cannot_be_read_are_refused_in_a_line(
    amendments: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {**dataclasses.replace(WORKLOADS["smoke"](), storage=str(tmp_path)).to_json(), "amendments": amendments}
    (tmp_path / "best.json").write_text(json.dumps(tree))
    fake_module(monkeypatch, "mgray.trainer", "train")
    monkeypatch.setattr("mgray.check.check_run", lambda run: None)
    assert cli.main(["train", str(tmp_path / "best.json")]) == 2
    assert "holds no amendments" in capsys.readouterr().err


def test_tune_passes_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_module(monkeypatch, "mgray.tune.search", "search")
    arguments = [
        "--space",
        "optim",
        "--trials",
        "5",
        "--objective",
        "cost",
        "--target-top1",
        "0.8",
        "--out",
        str(tmp_path / "s"),
    ]
    assert cli.main(["tune", "smoke", *arguments]) == 0
    ((run, space, settings), named) = calls[0]
    assert run == WORKLOADS["smoke"]() and set(space) == {"lr", "scale", "warmup", "decay", "momentum"}
    assert (settings.trials, settings.goal.objective, settings.goal.target, settings.scheduler) == (
        5,
        "cost",
        0.8,
        "asha",
    )
    assert named == {"verbose": False}


def test_eval_passes_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def record(run: str, viewing: Viewing, **named: Any) -> Any:
        calls.append((run, viewing, named["data"]))
        return types.SimpleNamespace(to_json=lambda: {"top1": 0.5}, broken=[])

    monkeypatch.setattr("mgray.evaluation.run.evaluate_run", record)
    assert cli.main(["eval", "runs/x", "--data", "shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"top1": 0.5}
    options = [
        "--views",
        "10x3",
        "--pool",
        "max",
        "--short-side",
        "256",
        "--crop",
        "224",
        "--workers",
        "3",
        "--max-broken",
        "0.2",
    ]
    assert cli.main(["eval", "runs/x", *options, "--json"]) == 0
    wide = Viewing(views=Views(clips=10, crops=3), pool="max", short_side=256, crop=224, workers=3, max_broken=0.2)
    assert calls == [("runs/x", Viewing(), "shards"), ("runs/x", wide, None)]


def test_ingest_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_module(monkeypatch, "mgray.trainer", "ingest_with_progress")
    assert cli.main(["ingest", "videos", "shards", "--levels", "180", "128"]) == 0
    assert calls == [
        (
            ("videos", "shards"),
            {
                "levels": (180, 128),
                "val_fraction": 0.2,
                "videos": "",
                "max_broken": 0.01,
                "limit_s": 600.0,
                "videos_per_shard": 64,
            },
        )
    ]


def test_convert_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours, back = (str(tmp_path / name) for name in ("theirs.pyth", "ours.pt", "back.pyth"))
    torch.save({"model_state": random_state(shapes("slowfast", width=16, fusion_kernel=5, classes=3))}, theirs)
    assert cli.main(["convert", theirs, ours]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{ours}: 2.11 M parameters, 3 classes; settings: --model.name slowfast --model.width 16")
    assert said.rstrip().endswith("--model.fusion-kernel 5 --model.slow-frames spread")
    assert cli.main(["convert", ours, back]) == 0
    assert capsys.readouterr().out.startswith(f"{back}: 2.11 M")
    assert torch.load(back, weights_only=True).keys() == {"model_state"}


def test_report_passes_its_folders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []
    fake = types.ModuleType("mgray.report")
    monkeypatch.setattr(fake, "read_run", str, raising=False)
    monkeypatch.setattr(fake, "print_comparison", lambda runs: calls.append(("print", runs)), raising=False)
    monkeypatch.setattr(fake, "write_report", lambda runs, out: calls.append((runs, out)), raising=False)
    monkeypatch.setitem(sys.modules, "mgray.report", fake)
    assert cli.main(["report", "runs/a", "runs/b", "--out", "page"]) == 0
    assert calls == [("print", ["runs/a", "runs/b"]), ((Path("runs/a"), Path("runs/b")), Path("page"))]


def test_bench_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_module(monkeypatch, "mgray.bench.loop", "bench_loop")
    assert cli.main(["bench", "loop", "--workers", "2", "--workload", "smoke"]) == 0
    assert calls == [((), {"workers": 2, "rounds": 5, "workload": "smoke"})]


@pytest.mark.parametrize("which", BENCHES)
def test_each_benchmark_has_help(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", which, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mgray bench {which} [-h] ")
    own = [example for example in COMMANDS["bench"].examples if example.startswith(f"mgray bench {which} ")]
    assert own and all(example in text for example in own)


@pytest.mark.parametrize(("arguments", "data"), [([], None), (["--data", "videos"], "videos")])
def test_demo_passes_its_arguments(monkeypatch: pytest.MonkeyPatch, arguments: list[str], data: str | None) -> None:
    calls = fake_module(monkeypatch, "mgray.demo", "demo")
    assert cli.main(["demo", *arguments, "--out", "here"]) == 0
    assert calls == [((), {"data": data, "out": Path("here")})]


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mgray: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["plna"], "did you mean plan?"),
        (["plan", "--plan.frames", "0"], "plan.frames = 0"),
        (["plan", "--plan.frames", "x"], "plan.frames = 'x': is no whole number"),
        (["plan", "--plan.frames=1.5"], "plan.frames = '1.5': is no whole number"),
        (["plan", "--plan.frames"], "plan.frames = '': needs 1 value"),
        (["plan", "--plan.lr", "high"], "plan.lr = 'high': is no number"),
        (["plan", "--plan.lr-steps", "0", "a"], "plan.lr_steps = '0 a'"),
        (["plan", "--plan.long-cycle", "once"], "plan.long_cycle = 'once': is no choice"),
        (["plan", "--plan.frmaes", "3"], "did you mean --plan.frames?"),
        (["plan", "--epoch-factor", "1"], "did you mean --plan.epoch-factor?"),
        (["plan", "--pyslowfast", "missing.yaml"], "missing.yaml"),
        (["plan", "--pyslowfast"], "pyslowfast"),
        (["plan", "smoke", "SOLVER.BASE_LR", "1"], "--pyslowfast"),
        (["plan", "--pyslowfast", "missing.yaml", "SOLVER.BASE_LR"], "missing.yaml"),
        (["plan", "smok"], "did you mean smoke?"),
        (["plan", "unheard_of"], "kinetics400_slowfast_r50"),
        (["plan", "--data.num-samples", "0"], "data.num_samples = 0"),
        (["plan", "--data.path", "missing"], "data.path = 'missing'"),
        (["plan", "smoke", "--plot", "plan.bmp"], "plan.bmp"),
        (["plan", "smoke", "--step-times", "missing.json"], "missing.json"),
        (["plan", "smoke", "--gpus", "2", "--decode-rate", "quick"], "decode_rate = 'quick'"),
        (["plan", "smoke", "--decode-rate", "quick"], "decode_rate = 'quick': says something of a cluster"),
        (["plan", "smoke", "--cores", "8", "--json"], "cores = 8.0: says something of a cluster"),
        (["plan", "smoke", "--gpus", "2", "--node-gpus", "0"], "node_gpus = 0: must be positive"),
        (["plan", "smoke", "--model.name", "foo"], "model.name = 'foo'"),
        (["plan", "smoke", "--gpus", "2", "--decode-rate", "0"], "is no rate"),
        (["plan", "smoke", "--gpus", "-1"], "gpus = -1"),
        (["tune"], "NAME = ''"),
        (["tune", "smoke", "--space", "cycle"], "did you mean cycles?"),
        (["tune", "smoke", "--trials", "0"], "trials = 0"),
        (["tune", "smoke", "--budget", "-1"], "budget = -1"),
        (["tune", "smoke", "--objective", "cost"], "target_top1 = 0.0: is missing"),
        (["tune", "smoke", "--objective", "cost", "--target-top1", "80"], "target_top1 = 80"),
        (["tune", "smoke", "--scheduler", "sha"], "scheduler"),
        (["tune", "smoke", "--data.path", "missing"], "data.path = 'missing'"),
        (["train", "missing.json"], "missing.json"),
        (["plan", "smoke", "--gpus", "1", "--tflops", "0"], "tflops = 0"),
        (["plan", "smoke", "--gpus", "1", "--model.name", "resnet"], "model.name = 'resnet'"),
        (["train"], "NAME = ''"),
        (["train", "smok"], "did you mean smoke?"),
        (["train", "folder"], "data.path = ''"),
        (["train", "smoke", "--data.path", "missing"], "data.path = 'missing'"),
        (["train", "smoke", "--model.name", "resnet", "--data.path", "x"], "model.name = 'resnet'"),
        (["train", "smoke", "--scale.workers", "0"], "scale.workers = 0"),
        (["train", "smoke", "--scale.worker", "1"], "did you mean --scale.workers?"),
        (["train", "smoke", "--train.precision", "int8"], "train.precision = 'int8'"),
        (["train", "smoke", "extra"], "'extra'"),
        (["demo", "--data", "missing"], "data.path"),
        (["bench"], "mgray bench loop"),
        (["bench", "fed"], "'fed'"),
        (["bench", "feed", "--gop", "0"], "gop = 0"),
        (["bench", "feed", "--spans", "wide"], "spans = 'wide'"),
        (["bench", "feed", "--plot", "feed.bmp"], "plot = 'feed.bmp'"),
        (["bench", "feed", "--data", "missing"], "missing"),
        (["bench", "loop", "--rounds", "0"], "rounds = 0"),
        (["bench", "norm", "--rounds", "0"], "rounds = 0"),
        (["bench", "step", "--budget", "0"], "budget = 0"),
        (["bench", "loop", "--workload", "x"], "NAME = 'x'"),
        (["ingest"], "SOURCE = ''"),
        (["ingest", "videos"], "OUT = ''"),
        (["eval"], "RUN = ''"),
        (["eval", "runs/x", "--views", "10"], "views = '10'"),
        (["eval", "runs/x", "--views", "0x3"], "views = '0x3'"),
        (["eval", "runs/x", "--views", "2x2"], "views = '2x2'"),
        (["eval", "runs/x", "--pool", "sum"], "pool = 'sum': is no choice"),
        (["eval", "runs/x", "--workers", "-1"], "workers = -1"),
        (["eval", "runs/x", "--crop", "-1"], "crop = -1"),
        (["eval", "runs/x", "--plot", "confusion.bmp"], "plot = 'confusion.bmp'"),
        (["eval", "runs/x", "--predictions", "/dev/null/p.parquet"], "predictions = '/dev/null/p.parquet'"),
        (["eval", "missing"], "checkpoint = 'missing'"),
        (["predict"], "CHECKPOINT = ''"),
        (["predict", "runs/x"], "VIDEO = ''"),
        (["predict", "runs/x", "a.mp4", "--every", "-1"], "every = -1.0"),
        (["predict", "runs/x", "a.mp4", "--every", "nan"], "every = nan"),
        (["predict", "missing", "a.mp4"], "checkpoint = 'missing'"),
        (["convert"], "IN = ''"),
        (["convert", "in.pyth"], "OUT = ''"),
        (["convert", "missing.pyth", "out.pt"], "weights = 'missing.pyth'"),
        (["convert", ".", "out.pt"], "checkpoint = '.'"),
        (["report"], "RUN = ''"),
        (["report", "missing"], "missing"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in one_line(capsys, arguments)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_sees_the_same_line(encoding: str) -> None:
    """tyro boxes and colours its errors where the output is a terminal."""
    ours, terminal = os.openpty()
    code = "import sys; from mgray.cli import main; sys.exit(main(['plan', '--plan.frames', 'x']))"
    env = os.environ | {"TERM": "xterm", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=terminal, stderr=subprocess.PIPE, text=True, env=env, check=False
    )
    os.close(terminal)
    os.close(ours)
    assert done.stderr == "mgray: plan.frames = 'x': is no whole number; see mgray plan --help\n"
    assert done.returncode == 2


def test_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "plan", dataclasses.replace(COMMANDS["plan"], run=interrupted))
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == "mgray: interrupted\n"


HEAVY = "{'torch', 'torchvision', 'ray', 'av', 'matplotlib', 'pyarrow'}"


def test_light_commands_load_nothing_heavy() -> None:
    """One after another in one process, so that the first that loads something is named."""
    lines = [
        ["plan", "folder"],
        *([command, "--help"] for command in ("plan", "eval", "predict", "train", "convert", "demo")),
        ["train", "smok"],
    ]
    code = (
        f"import sys; from mgray.cli import main\nfor line in {lines!r}:\n"
        f"    main(line); assert not sys.modules.keys() & {HEAVY}, line\nprint('all', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "all", done.stderr


def test_bad_data_is_refused_before_torch_or_ray_load() -> None:
    code = (
        "import sys; from mgray.cli import main; status = main(['train', 'smoke', '--data.path', 'missing']); "
        f"sys.exit(str((status, sys.modules.keys() & {HEAVY} - {{'pyarrow'}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "(2, set())"


def test_output_to_a_closed_pipe_is_no_traceback() -> None:
    code = "import sys; from mgray.cli import main; sys.exit(main(['plan', 'smoke', '--json']))"
    done = subprocess.run(
        f"{sys.executable} -c {json.dumps(code)} | head -c 10", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_check_run_is_what_train_refuses_with() -> None:
    assert check_run.__module__ == "mgray.check"
    assert Run().data.path == ""


def test_shards_are_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, train=3, val=2, levels=(32, 16))
    root = str(tmp_path / "set")
    assert cli.main(["shards", "info", root]) == 0
    text = capsys.readouterr().out
    assert "3 to train on, 2 to validate on" in text and "level 32" in text and "level 16" in text and "5 h264" in text
    assert cli.main(["shards", "info", root, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [level["videos"] for level in tree["levels"]] == [5, 5] and tree["frames"] == 54
    assert cli.main(["shards", "verify", root]) == 0
    shard = tmp_path / "set" / "16" / "00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    assert cli.main(["shards", "verify", root]) == 2
    assert "16/00000.arrow is damaged (its checksum differs)" in capsys.readouterr().err
    assert cli.main(["shards", "look", root]) == 2
    assert "mgray shards info DIR" in capsys.readouterr().err


def test_a_dry_run_estimates_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = write_tree(tmp_path / "videos", {"a": 3, "b": 3})
    (videos / "a" / "text.mp4").write_text("no video")
    assert cli.main(["ingest", str(videos), str(tmp_path / "out"), "--dry-run", "--levels", "32", "16"]) == 0
    text = capsys.readouterr().out
    assert "7 videos" in text and "of the sources" in text and "text.mp4" in text
    assert not (tmp_path / "out").exists()
    assert cli.main(["ingest", str(videos), str(tmp_path / "out"), "--levels", "large"]) == 2
    assert "levels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--levels", "16", "32"], "levels = "),
        (["--levels", "-5"], "levels = "),
        (["--levels", "0"], "levels = '0': is no short side; give e.g. --levels 256 226 160, or --passthrough"),
        (["--max-broken", "7"], "max_broken = 7.0"),
        (["--val-fraction", "20"], "val_fraction = 20.0"),
        (["--videos-per-shard", "0"], "videos_per_shard = 0"),
        (["--limit-s", "0"], "limit_s = 0.0"),
    ],
)
def test_ingest_s_settings_are_checked_also_in_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    for dry in ([], ["--dry-run"]):
        assert cli.main(["ingest", str(tmp_path), str(tmp_path / "out"), *options, *dry]) == 2
        assert problem in capsys.readouterr().err


def test_levels_may_be_read_off_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("mgray.trainer.ingest_with_progress", lambda *args, **kwargs: calls.append(kwargs["levels"]))
    assert cli.main(["ingest", "v", "s", "--levels", "auto", "--workload", "demo"]) == 0
    assert cli.main(["ingest", "v", "s", "--passthrough"]) == 0
    assert calls == [(72, 54), (0,)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "RUN = '': is missing"),
        (["mine"], "ACTION = '': is no action"),
        (["mine", "stopp"], "ACTION = 'stopp': is no action; did you mean stop?"),
        (["mine", "resize"], "VALUE = '': is missing; write mgray ctl RUN resize WORKERS"),
        (["mine", "stop", "3"], "VALUE = 3.0: does not go with stop"),
        (["mine", "stop", "--at-step", "-1"], "at_step = -1: must not be negative"),
        (["mine", "advance", "nan"], "advance = nan: is no share; give a number from 0 to 1, or none"),
        (["mine", "resize", "inf"], "resize = inf: is no number of workers; give a whole number"),
        (["mine", "status"], "RUN = 'mine': is no run"),
    ],
)
def test_ctl_says_what_is_wrong_at_once(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ctl", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"mgray: {problem}")


def test_ctl_of_a_run_that_is_not_in_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    assert cli.main(["ctl", str(tmp_path / "mine"), "status"]) == 2
    assert "is not in progress; start it with mgray train" in capsys.readouterr().err


def test_ctl_takes_a_folder_as_shells_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "checkpoint").mkdir(parents=True)
    (tmp_path / "mine" / "run.json").write_text("{}")
    for here, name in (("mine", "."), ("mine/checkpoint", ".."), (".", "mine/")):
        monkeypatch.chdir(tmp_path / here)
        assert cli.main(["ctl", name, "status"]) == 2
        assert f"RUN = '{tmp_path / 'mine'}': is not in progress" in capsys.readouterr().err
