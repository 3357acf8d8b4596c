"""Read a PySlowFast configuration (YAML, then KEY VALUE pairs) into a PlanSpec."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mgray.errors import ConfigError
from mgray.plan import PlanSpec

DEFAULTS: dict[str, Any] = {
    "NUM_GPUS": 1,
    "NUM_SHARDS": 1,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": False,
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

    Batch-norm groups come from NUM_GPUS and BN without a long cycle, from MULTIGRID.BN_BASE_SIZE with one. Batches are
    those of all NUM_SHARDS machines together.

    Raises:
        ConfigError: the file is missing or no mapping, an override has no value, or a value has the wrong type.
    """
    if not path.is_file():
        raise ConfigError("--pyslowfast", str(path), "no such file", "give the path of a PySlowFast YAML file")
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError("--pyslowfast", str(path), f"cannot be read ({error.strerror})", "name a file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError("--pyslowfast", str(path), f"is no YAML ({problem})", "mend the file") from None
    if not isinstance(tree, dict):
        raise ConfigError("--pyslowfast", str(path), "holds no mapping", "give a PySlowFast YAML file")
    if len(overrides) % 2:
        raise ConfigError("--pyslowfast", overrides[-1], "has no value", "write overrides as KEY VALUE pairs")
    flat = _flatten(tree) | {k: _literal(v) for k, v in zip(overrides[::2], overrides[1::2], strict=True)}
    values = DEFAULTS | {key: value for key, value in flat.items() if key in DEFAULTS}
    _check_keys(flat, overrides[::2])
    try:
        return _spec(values)
    except (TypeError, IndexError, ValueError) as error:
        raise ConfigError("--pyslowfast", str(path), f"has a value of the wrong type ({error})", "mend it") from None


def _check_keys(flat: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse keys that look misspelt; keys without a bearing on the schedule pass."""
    for key in flat:
        if key in DEFAULTS or key in IGNORED:
            continue
        near = difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0.9)
        if key.startswith("MULTIGRID.") or (key in overrides and near):
            remedy = f"did you mean {near[0]}?" if near else "check its name"
            raise ConfigError("--pyslowfast", key, "is no key of PySlowFast", remedy)


def _flag(values: dict[str, Any], key: str) -> bool:
    if not isinstance(values[key], bool):
        raise ConfigError(key, values[key], "is no truth value", "write True or False")
    return bool(values[key])


def _spec(values: dict[str, Any]) -> PlanSpec:
    policies = {"steps_with_relative_lrs": "steps", "cosine": "cosine"}
    policy = values["SOLVER.LR_POLICY"]
    if policy not in policies:
        raise ConfigError("SOLVER.LR_POLICY", policy, "is not supported", f"use one of {', '.join(policies)}")
    long_cycle, short_cycle = (_flag(values, f"MULTIGRID.{cycle}_CYCLE") for cycle in ("LONG", "SHORT"))
    shards = int(values["NUM_SHARDS"])
    lr_scale = shards if _flag(values, "SOLVER.BASE_LR_SCALE_NUM_SHARDS") else 1
    batch, epochs = int(values["TRAIN.BATCH_SIZE"]) * shards, int(values["SOLVER.MAX_EPOCH"])
    per_device = batch / (shards * int(values["NUM_GPUS"] or 1))
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
        epochs=epochs,
        epoch_factor=float(values["MULTIGRID.EPOCH_FACTOR"]) if long_cycle or short_cycle else 1.0,
        long_cycle="stage" if long_cycle else "off",
        short_cycle=short_cycle,
        long_factors=tuple((float(t), float(s)) for t, s in values["MULTIGRID.LONG_CYCLE_FACTORS"]),
        short_factors=tuple(float(s) for s in values["MULTIGRID.SHORT_CYCLE_FACTORS"]),
        lr=float(values["SOLVER.BASE_LR"]) * lr_scale,
        lr_policy="steps" if policies[policy] == "steps" else "cosine",
        lr_steps=tuple(int(step) for step in values["SOLVER.STEPS"] if long_cycle or step < epochs) or (0,),
        lr_factors=tuple(float(factor) for factor in values["SOLVER.LRS"]) or (1.0,),
        gamma=float(values["SOLVER.GAMMA"]),
        cosine_end_lr=float(values["SOLVER.COSINE_END_LR"]) * lr_scale,
        cosine_after_warmup=bool(values["SOLVER.COSINE_AFTER_WARMUP"]),
        warmup_epochs=float(values["SOLVER.WARMUP_EPOCHS"]),
        warmup_start_lr=float(values["SOLVER.WARMUP_START_LR"]) * lr_scale,
        bn_group=int(values["MULTIGRID.BN_BASE_SIZE"]) if long_cycle else max(1, int(sharing)),
    )
