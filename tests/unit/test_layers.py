"""Imports point down only, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for top in ("mgray", "workloads", "tune_spaces") for p in (ROOT / top).rglob("*.py"))
LAYERS = (
    ("errors", "jsonfile"),
    ("plan",),
    ("pyslowfast", "config"),
    ("workloads", "tune_spaces"),
    ("model", "data", "ledger"),
    ("check", "audit", "presence"),
    ("report", "display", "train", "driver", "cluster"),
    ("attempts", "control"),
    ("trainer",),
    ("bench", "tune", "evaluation"),
    ("demo",),
    ("cli",),
)
"""From the bottom; a part imports itself and the layers below."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
RAY = {
    "mgray/data/feed.py", "mgray/data/ingest.py", "mgray/train/session.py", "mgray/train/worker.py", "mgray/driver.py", "mgray/cluster.py", "mgray/attempts.py", "mgray/control.py",
    "mgray/evaluation/run.py", "mgray/trainer.py", *(f"mgray/tune/{name}.py" for name in ("scheduler", "search", "trial", "view")), "mgray/bench/loop.py",
}  # fmt: skip
AV = {
    *(f"mgray/data/decode/{path.name}" for path in (ROOT / "mgray" / "data" / "decode").glob("*.py")),
    "mgray/bench/readers.py",
}
NO_TORCH = {
    *(f"mgray/data/{name}.py" for name in ("annotations", "clip", "ingest", "ingest_part", "source")),
    *(f"mgray/{part}/{path.name}" for part in ("cli", "data/decode", "data/shards") for path in (ROOT / "mgray" / part).glob("*.py")), "mgray/check.py", "mgray/ledger.py", "mgray/audit.py", "mgray/model/flops.py", "mgray/config.py", "mgray/display.py", "mgray/errors.py", "mgray/pyslowfast.py",
}  # fmt: skip
PLAN_MAY_IMPORT = sys.stdlib_module_names | {"mgray"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, *, at_import: bool = False) -> tuple[str, ...]:
    """Dotted names of the modules that a file imports; `at_import` leaves out what functions and TYPE_CHECKING import."""
    found: list[str] = []
    nodes: list[ast.AST] = [*tree_of(path).body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)
    return tuple(found)


def layer_of(module: str) -> str | None:
    """The part of mgray that a dotted module name belongs to; None for other packages and for mgray itself."""
    parts = module.split(".")
    if parts[0] in ("workloads", "tune_spaces"):
        return parts[0]
    return parts[1] if parts[0] == "mgray" and len(parts) > 1 and parts[1] in RANK else None


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(ROOT / "mgray").parts[0].removesuffix(".py") for path in (ROOT / "mgray").rglob("*.py")}
    assert parts - {"__init__", "__main__"} <= RANK.keys()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        other = layer_of(module)
        if own is not None and other is not None and own != other:
            assert RANK[other] < RANK[own], f"{name_of(path)} imports {module}"


@pytest.mark.parametrize(("package", "allowed"), [("ray", RAY), ("av", AV)])
def test_packages_are_imported_where_they_belong(package: str, allowed: set[str]) -> None:
    users = {name_of(path) for path in SOURCES if package in {module.split(".")[0] for module in imports(path)}}
    assert users <= allowed


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path) in NO_TORCH], ids=name_of)
def test_light_modules_do_not_import_torch(path: Path) -> None:
    assert "torch" not in {module.split(".")[0] for module in imports(path, at_import=True)}


@pytest.mark.parametrize("path", sorted((ROOT / "mgray" / "plan").rglob("*.py")), ids=name_of)
def test_plan_is_standard_library_only(path: Path) -> None:
    for module in imports(path):
        assert module.split(".")[0] in PLAN_MAY_IMPORT, f"{name_of(path)} imports {module}"
        assert layer_of(module) in (None, "plan", "errors")


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (("mgray", "mgray.plan", "mgray.config", "workloads"), {"torch", "ray", "av", "numpy", "tyro"}),
        (("mgray.cli",), {"torch", "ray", "av", "matplotlib", "pyarrow"}),
        (
            (
                "mgray.check",
                *(f"mgray.data.{name}" for name in ("annotations", "clip", "decode.ingest_video", "shards.shard_set", "source")),
            ),
            {"torch", "ray"},
        ),
    ],
)  # fmt: skip
def test_importing_stays_light(modules: tuple[str, ...], forbidden: set[str]) -> None:
    """One after another in one process, so that the first that brings a heavy package is named."""
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n"
        f"    importlib.import_module(name); assert not sys.modules.keys() & {forbidden!r}, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
