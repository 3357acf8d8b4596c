"""Weights that a run starts from: a file of `mgray convert`, or another run's checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mgray.config import ModelSection, Run
from mgray.errors import CheckpointError
from mgray.model import build_model
from mgray.model.convert import Weights, convert_file, listed, read_weights, write_pyslowfast
from mgray.train.checkpoint import newest_checkpoint, read_meta, read_model

UNSEEN = ("alpha", "slow_frames")
"""Settings of SlowFast that no weight's shape tells."""


def read_initial(path: str) -> Weights:
    """The weights of a file of `mgray convert`, of a checkpoint, or of the newest checkpoint in a run's folder.

    Raises:
        CheckpointError: there are none.
    """
    where = Path(path).expanduser()
    if not where.is_dir():
        return read_weights(path)
    folder = newest_checkpoint(where)
    return Weights(section=Run.from_json(read_meta(folder).run).model, state=read_model(folder))


def convert(source: str, out: str, *, name: str = "") -> Weights:
    """`convert_file`, or a run's newest checkpoint or the one given as a PySlowFast checkpoint.

    Raises:
        MgrayError: see `convert_file`.
    """
    if not Path(source).expanduser().is_dir():
        return convert_file(source, out, name=name)
    weights = read_initial(source)
    write_pyslowfast(weights, out)
    return weights


def load_initial(model: nn.Module, section: ModelSection) -> str:
    """Load `section.init` in place, but for a head of another number of classes; returns a line that says so.

    Raises:
        CheckpointError: the weights cannot be read, or are those of another model.
    """
    weights = read_initial(section.init)
    line, head = _compare(model, section, weights)
    model.load_state_dict({key: value for key, value in weights.state.items() if key not in head}, strict=False)
    return line


def initial_line(section: ModelSection, num_classes: int) -> str:
    """The line of `load_initial`, without loading: what does not fit is refused before workers start.

    Raises:
        CheckpointError: see `load_initial`.
    """
    with torch.device("meta"):
        model = build_model(section, num_classes)
    return _compare(model, section, read_initial(section.init))[0]


def _compare(model: nn.Module, section: ModelSection, weights: Weights) -> tuple[str, frozenset[str]]:
    """What a start from `weights` comes to, and the keys of a head that starts afresh."""
    wanted, state = model.state_dict(), weights.state
    other = {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape}
    head = {key for key in _head(model) & other if wanted[key].shape[1:] == state[key].shape[1:]}
    problems = (
        ("unknown keys", state.keys() - wanted.keys()),
        ("missing keys", wanted.keys() - state.keys()),
        ("other shapes", {f"{key} {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}" for key in other - head}),
    )
    problem = "; ".join(f"{what} {listed(keys)}" for what, keys in problems if keys)
    if problem:
        raise CheckpointError(
            "model.init", section.init, f"holds the weights of another model ({problem})",
            f"give the --model.* settings of those weights ({weights.section.name}, depth {weights.section.depth})",
        )  # fmt: skip
    line = f"weights start from {section.init}"
    if head:
        key = max(head)
        line += f"; the head starts afresh, for {wanted[key].shape[0]} classes instead of {state[key].shape[0]}"
    unseen = [
        f"model.{name} {getattr(weights.section, name)}" for name in UNSEEN
        if section.name == "slowfast" and getattr(weights.section, name) != getattr(section, name)
    ]  # fmt: skip
    if unseen:
        line += f"; they were trained with {', '.join(unseen)}"
    return line, frozenset(head)


def _head(model: nn.Module) -> frozenset[str]:
    """Keys of the last layer with weights: the classifier in all our networks."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv3d)]
    return frozenset(f"{layers[-1]}.{leaf}" for leaf in ("weight", "bias"))
