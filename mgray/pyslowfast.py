"""Read a PySlowFast configuration (YAML, then KEY VALUE pairs) into a PlanSpec."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mgray.errors import ConfigError
from mgray.plan import PlanSpec

DEFAULTS: dict[str, Any] = {
    "NUM_GPUS": 1,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.LR_POLICY": "cosine",
    "SOLVER.COSINE_END_LR": 0.0,
    "SOLVER.COSINE_AFTER_WARMUP": False,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": [],
    "SOLVER.LRS": [],
    "SOLVER.MAX_EPOCH": 300,
    "SOLVER.WARMUP_EPOCHS": 0.0,
    "SOLVER.WARMUP_START_LR": 0.01,
    "TRAIN.BATCH_SIZE": 64,
    "DATA.NUM_FRAMES": 8,
    "DATA.SAMPLING_RATE": 8,
    "DATA.TRAIN_CROP_SIZE": 224,
    "DATA.TRAIN_JITTER_SCALES": [256, 320],
    "BN.NORM_TYPE": "batchnorm",
    "BN.NUM_SPLITS": 1,
    "BN.NUM_SYNC_DEVICES": 1,
    "MULTIGRID.EPOCH_FACTOR": 1.5,
    "MULTIGRID.SHORT_CYCLE": False,
    "MULTIGRID.SHORT_CYCLE_FACTORS": [0.5, 0.5**0.5],
    "MULTIGRID.LONG_CYCLE": False,
    "MULTIGRID.LONG_CYCLE_FACTORS": [(0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1)],
    "MULTIGRID.BN_BASE_SIZE": 8,
}
"""PySlowFast's own defaults of the keys that shape a schedule (slowfast/config/defaults.py)."""
IGNORED = {
    f"MULTIGRID.{key}" for key in ("EVAL_FREQ", "LONG_CYCLE_SAMPLING_RATE", "DEFAULT_B", "DEFAULT_T", "DEFAULT_S")
}
"""Keys that have no bearing on the schedule, or that the reference writes for itself."""


def _literal(value: Any) -> Any:
    """The value that PySlowFast's configuration reader makes of a string: a Python literal where it is one."""
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _literal(value)}
    return flat


def read_plan_spec(path: Path, overrides: Sequence[str] = ()) -> PlanSpec:
    """The schedule that a PySlowFast YAML file and its KEY VALUE overrides describe.

    Batch-norm groups come from NUM_GPUS and BN without a long cycle, from MULTIGRID.BN_BASE_SIZE with one.

    Raises:
        ConfigError: the file is missing or no mapping, an override has no value, or a value has the wrong type.
    """
    if not path.is_file():
        raise ConfigError("--pyslowfast", str(path), "no such file", "give the path of a PySlowFast YAML file")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError("--pyslowfast", str(path), f"is no YAML ({problem})", "mend the file") from None
    if not isinstance(tree, dict):
        raise ConfigError("--pyslowfast", str(path), "holds no mapping", "give a PySlowFast YAML file")
    if len(overrides) % 2:
        raise ConfigError("--pyslowfast", overrides[-1], "has no value", "write overrides as KEY VALUE pairs")
    flat = _flatten(tree) | {k: _literal(v) for k, v in zip(overrides[::2], overrides[1::2], strict=True)}
    values = DEFAULTS | {key: value for key, value in flat.items() if key in DEFAULTS}
    unknown = [key for key in flat if key.startswith("MULTIGRID.") and key not in DEFAULTS.keys() | IGNORED]
    if unknown:
        raise ConfigError("--pyslowfast", unknown[0], "is no key of PySlowFast's MULTIGRID section", "check its name")
    try:
        return _spec(values)
    except (TypeError, IndexError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("--pyslowfast", str(path), f"has a value of the wrong type ({error})", "mend it") from None


def _spec(values: dict[str, Any]) -> PlanSpec:
    policies = {"steps_with_relative_lrs": "steps", "cosine": "cosine"}
    policy = values["SOLVER.LR_POLICY"]
    if policy not in policies:
        raise ConfigError("SOLVER.LR_POLICY", policy, "is not supported", f"use one of {', '.join(policies)}")
    long_cycle, short_cycle = bool(values["MULTIGRID.LONG_CYCLE"]), bool(values["MULTIGRID.SHORT_CYCLE"])
    batch = int(values["TRAIN.BATCH_SIZE"])
    per_device = batch / int(values["NUM_GPUS"] or 1)
    sharing = {
        "sync_batchnorm": per_device * int(values["BN.NUM_SYNC_DEVICES"]),
        "sub_batchnorm": per_device / int(values["BN.NUM_SPLITS"]),
    }.get(values["BN.NORM_TYPE"], per_device)
    jitter = values["DATA.TRAIN_JITTER_SCALES"]
    return PlanSpec(
        frames=int(values["DATA.NUM_FRAMES"]),
        crop=int(values["DATA.TRAIN_CROP_SIZE"]),
        batch=batch,
        stride=int(values["DATA.SAMPLING_RATE"]),
        jitter_min=int(jitter[0]),
        jitter_max=int(jitter[1]),
        epochs=int(values["SOLVER.MAX_EPOCH"]),
        epoch_factor=float(values["MULTIGRID.EPOCH_FACTOR"]) if long_cycle or short_cycle else 1.0,
        long_cycle="stage" if long_cycle else "off",
        short_cycle=short_cycle,
        long_factors=tuple((float(t), float(s)) for t, s in values["MULTIGRID.LONG_CYCLE_FACTORS"]),
        short_factors=tuple(float(s) for s in values["MULTIGRID.SHORT_CYCLE_FACTORS"]),
        lr=float(values["SOLVER.BASE_LR"]),
        lr_policy="steps" if policies[policy] == "steps" else "cosine",
        lr_steps=tuple(int(step) for step in values["SOLVER.STEPS"]) or (0,),
        lr_factors=tuple(float(factor) for factor in values["SOLVER.LRS"]) or (1.0,),
        gamma=float(values["SOLVER.GAMMA"]),
        cosine_end_lr=float(values["SOLVER.COSINE_END_LR"]),
        cosine_after_warmup=bool(values["SOLVER.COSINE_AFTER_WARMUP"]),
        warmup_epochs=float(values["SOLVER.WARMUP_EPOCHS"]),
        warmup_start_lr=float(values["SOLVER.WARMUP_START_LR"]),
        bn_group=int(values["MULTIGRID.BN_BASE_SIZE"]) if long_cycle else max(1, int(sharing)),
    )
