"""Weights of other programs: PySlowFast's checkpoints to ours and back, PyTorchVideo's, and 2D ResNets inflated to 3D.

Names are mapped by rule, from our module to theirs; a key that is unknown or missing is an error. Batch norm is stored
under the same names in both, but for PySlowFast's sub-batch norm, whose aggregated statistics lie one level deeper.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mgray.config import ModelSection, Run
from mgray.errors import CheckpointError, ConfigError
from mgray.model import build_model
from mgray.model.resnet3d import ARCHITECTURES, LAYOUTS, SLOW, Layout, spans

FORMAT, VERSION = "mgray weights", 1
COUNTER = "num_batches_tracked"
"""Buffer that no result depends on (the momentum of our norms is set); old files lack it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's weights, and the section that builds it."""

    section: ModelSection
    state: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        return int(self.state["classifier.weight"].shape[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """How another program names our modules.

    Args:
        rules: pattern of our name, template of theirs.
        words: their word for each value of a pattern's group; groups without an entry stay as they are.
    """

    program: str
    rules: tuple[tuple[str, str], ...]
    words: dict[str, dict[str, str]]

    def translate(self, keys: Iterable[str]) -> dict[str, str]:
        """Their key for each of our state dict's keys; raises CheckpointError for one without a rule."""
        found = {}
        for key in keys:
            module, _, leaf = key.rpartition(".")
            matches = ((re.fullmatch(pattern, module), template) for pattern, template in self.rules)
            match, template = next(((match, template) for match, template in matches if match), (None, ""))
            if match is None:
                raise CheckpointError("model", key, f"has no name in {self.program}", f"it has only {', '.join(OURS)}")
            groups = {name: self.words.get(name, {}).get(text, text) for name, text in match.groupdict().items()}
            found[key] = f"{template.format(**groups)}.{leaf}"
        return found


PYTORCHVIDEO = (
    (r"blocks\.0(?:\.multipathway_blocks\.(?P<path>\d))?\.(?P<stem>conv|norm)", "s1.pathway{path}_stem.{stem}"),
    (r"blocks\.(?P<stage>\d)\.multipathway_fusion\.(?P<lateral>conv_fast_to_slow|norm)", "s{stage}_fuse.{lateral}"),
    (
        r"blocks\.(?P<stage>\d)(?:\.multipathway_blocks\.(?P<path>\d))?\.res_blocks\.(?P<block>\d+)\.(?P<side>branch1_\w+)",
        "s{stage}.pathway{path}_res{block}.{side}",
    ),
    (
        r"blocks\.(?P<stage>\d)(?:\.multipathway_blocks\.(?P<path>\d))?\.res_blocks\.(?P<block>\d+)\.branch2\.(?P<layer>\w+)",
        "s{stage}.pathway{path}_res{block}.branch2.{layer}",
    ),
    (r"blocks\.\d\.proj", "head.projection"),
)
"""PyTorchVideo's names, and PySlowFast's for them; its networks of one pathway are pathway 0."""
OURS = ("slowfast", *ARCHITECTURES)
"""Models of ours that PySlowFast has too."""
_PATH, _BLOCK = r"(?P<path>|slow_|fast_)", r"stages\.(?P<stage>\d)\.(?P<block>\d+)"
PYSLOWFAST = Names(
    program="PySlowFast",
    rules=(
        (rf"{_PATH}stem\.(?P<stem>\d)", "s1.{path}_stem.{stem}"),
        (rf"{_PATH}{_BLOCK}\.body\.(?P<layer>\d)", "s{stage}.{path}_res{block}.branch2.{layer}"),
        (rf"{_PATH}{_BLOCK}\.shortcut\.(?P<side>\d)", "s{stage}.{path}_res{block}.{side}"),
        (r"laterals\.(?P<before>\d)\.(?P<lateral>conv|norm)", "s{before}_fuse.{lateral}"),
        (r"nonlocals\.(?P<stage>\d)_(?P<block>\d+)\.norm", "s{stage}.pathway0_nonlocal{block}.norm"),
        (r"nonlocals\.(?P<stage>\d)_(?P<block>\d+)\.(?P<conv>\w+)", "s{stage}.pathway0_nonlocal{block}.conv_{conv}"),
        (r"classifier", "head.projection"),
    ),
    words={
        "path": {"": "pathway0", "slow_": "pathway0", "fast_": "pathway1"},
        "stem": {"0": "conv", "1": "bn"},
        "stage": {str(index): str(index + 2) for index in range(4)},
        "before": {str(index): str(index + 1) for index in range(4)},
        "layer": {"0": "a", "1": "a_bn", "3": "b", "4": "b_bn", "6": "c", "7": "c_bn"},
        "side": {"0": "branch1", "1": "branch1_bn"},
        "lateral": {"conv": "conv_f2s", "norm": "bn"},
    },
)
TORCHVISION = Names(
    program="torchvision's 2D ResNets",
    rules=(
        (r"stem\.(?P<stem>\d)", "{stem}"),
        (rf"{_BLOCK}\.body\.(?P<layer>\d)", "layer{stage}.{block}.{layer}"),
        (rf"{_BLOCK}\.shortcut\.(?P<side>\d)", "layer{stage}.{block}.downsample.{side}"),
        (r"classifier", "fc"),
    ),
    words={
        "stem": {"0": "conv1", "1": "bn1"},
        "stage": {str(index): str(index + 1) for index in range(4)},
        "layer": {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"},
    },
)
INFLATABLE = tuple(ARCHITECTURES)
"""Models that a 2D ResNet can start."""


def convert_file(source: str, out: str, *, name: str = "") -> Weights:
    """Turn PySlowFast's or a 2D ResNet's file into a weights file of ours, or one of ours into PySlowFast's.

    Args:
        source: the file to read.
        out: the file to write.
        name: the model; what a PySlowFast file holds is recognised without it.

    Raises:
        CheckpointError: the file cannot be read, or its keys are not those of the model.
        ConfigError: a model that the file's weights do not go with.
    """
    tree = read_tree(source)
    if tree.get("format") == FORMAT:
        weights = _of_tree(tree, source)
        write_pyslowfast(weights, out)
        return weights
    if "conv1.weight" in tree and "layer1.0.conv1.weight" in tree:
        weights = inflate(tree, name, source)
    else:
        weights = from_pyslowfast(tree, name, source)
    write_weights(weights, out)
    return weights


def read_tree(path: str) -> dict[str, Any]:
    """The dictionary that a file of torch's holds.

    Raises:
        CheckpointError: it cannot be read, is of another kind, or holds code.
    """
    try:
        tree = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError("weights", path, f"cannot be read ({error.strerror})", "name a file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            "weights", path, f"is no file of tensors that torch wrote ({reason})",
            "give a .pyth checkpoint; the .pkl files of PySlowFast's model zoo are caffe2's and cannot be read, PyTorchVideo's can",
        ) from None  # fmt: skip
    if not isinstance(tree, dict) or "blobs" in tree:
        raise CheckpointError(
            "weights", path, "holds no weights by name", "give a .pyth checkpoint (not caffe2's .pkl)"
        )
    return tree


def read_weights(path: str) -> Weights:
    """A weights file of ours.

    Raises:
        CheckpointError: it is none.
    """
    tree = read_tree(path)
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            "weights", path, "is no weights file of mgray", f"convert it first: mgray convert {path} OUT"
        )
    return _of_tree(tree, path)


def _of_tree(tree: dict[str, Any], path: str) -> Weights:
    if tree["version"] != VERSION:
        raise CheckpointError("weights", path, f"has version {tree['version']}, not {VERSION}", "convert it again")
    return Weights(section=Run.from_json({"model": tree["model"]}).model, state=tree["state"])


def write_weights(weights: Weights, path: str) -> None:
    """Write a weights file of ours; raises CheckpointError where it cannot be written."""
    section = dataclasses.asdict(weights.section)
    _write({"format": FORMAT, "version": VERSION, "model": section, "state": weights.state}, path)


def write_pyslowfast(weights: Weights, path: str) -> None:
    """Write weights as a PySlowFast checkpoint, with plain batch norm (PySlowFast makes sub-batch norm of it itself).

    Raises:
        CheckpointError: PySlowFast has no such model, or the file cannot be written.
    """
    names = PYSLOWFAST.translate(weights.state)
    _write({"model_state": {names[key]: value for key, value in weights.state.items()}}, path)


def _write(tree: dict[str, Any], path: str) -> None:
    try:
        torch.save(tree, Path(path).expanduser())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            "OUT", path, f"cannot be written ({reason})", "name a file in a folder that is there"
        ) from None


def from_pyslowfast(tree: Mapping[str, Any], name: str, source: str) -> Weights:
    """Our weights of a checkpoint or state dict of PySlowFast, or of its successor PyTorchVideo.

    Args:
        name: the model, or empty to recognise it by its keys.
        source: what messages call it.

    Raises:
        CheckpointError: unknown or missing keys, or tensors of other shapes than the model's.
    """
    state = plain_norms(of_pytorchvideo(tree.get("model_state", tree)))
    section = recognise(state, tree.get("cfg"), source)
    if name:
        section = dataclasses.replace(section, name=name)
    return Weights(section=section, state=_adopt(PYSLOWFAST, state, section, "head.projection", source))


def of_pytorchvideo(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """PyTorchVideo's state dict under PySlowFast's names; other keys stay as they are."""
    # pooling counts as a block there, so that stages are numbered by their order
    found = sorted({key.split(".")[1] for key in state if key.startswith("blocks.") and ".proj." not in key})
    words = {
        "stage": {block: str(number + 1) for number, block in enumerate(found)},
        "path": {"": "0"},
        "stem": {"conv": "conv", "norm": "bn"},
        "lateral": {"conv_fast_to_slow": "conv_f2s", "norm": "bn"},
        "side": {"branch1_conv": "branch1", "branch1_norm": "branch1_bn"},
        "layer": {f"{kind}_{x}": f"{x}{end}" for x in "abc" for kind, end in (("conv", ""), ("norm", "_bn"))},
    }
    renamed = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        for pattern, template in PYTORCHVIDEO:
            if match := re.fullmatch(pattern, module):
                groups = {name: words.get(name, {}).get(text, text) for name, text in match.groupdict("").items()}
                key = f"{template.format(**groups)}.{leaf}"
        renamed[key] = value
    return renamed


def plain_norms(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A PySlowFast state dict with plain batch norm for sub-batch norm: `bn` holds its aggregated statistics."""
    plain = {}
    for key, value in state.items():
        if ".split_bn." in key:
            continue
        match = re.fullmatch(r"(.+)\.bn\.(running_mean|running_var|num_batches_tracked)", key)
        # a stem's own norm is called bn as well, but the stem has no weight
        inner = match is not None and f"{match[1]}.weight" in state
        plain[f"{match[1]}.{match[2]}" if match is not None and inner else key] = value
    return plain


def recognise(state: Mapping[str, Tensor], cfg: object, source: str) -> ModelSection:
    """The section of a PySlowFast state dict's network; its `cfg` (YAML text) tells alpha, which no tensor does.

    Raises:
        CheckpointError: it is no network of ours.
    """
    stem, fast = state.get("s1.pathway0_stem.conv.weight"), state.get("s1.pathway1_stem.conv.weight")
    if stem is None or stem.dim() != 5:
        known = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            "weights", source, f"has no keys of PySlowFast's video ResNets (but e.g. {known})",
            "give a checkpoint of SlowFast, Slow, I3D or I3D-NLN, or a 2D ResNet of torchvision with --model",
        )  # fmt: skip
    layout = Layout(
        tuple(_count(state, f"s{index + 2}.pathway0_res{{}}.branch2.a.weight") for index in range(4)),  # type: ignore[arg-type]
        bottleneck="s2.pathway0_res0.branch2.c.weight" in state,
    )
    section = ModelSection(
        name="slowfast" if fast is not None else "i3d_nln" if any("_nonlocal" in key for key in state) else "i3d" if stem.shape[2] == 5 else "slow",
        depth=_depth(layout, source),
        width=stem.shape[0],
    )  # fmt: skip
    kernels = (SLOW if fast is not None else ARCHITECTURES[section.name]).kernels
    found = [
        [state[f"s{index + 2}.pathway0_res{block}.branch2.a.weight"].shape[2] for block in range(blocks)]
        for index, blocks in enumerate(layout.blocks)
    ]
    for temporal_blocks in range(max(layout.blocks)):
        if found == [spans(*stage, temporal_blocks) for stage in zip(kernels, layout.blocks, strict=True)]:
            section = dataclasses.replace(section, temporal_blocks=temporal_blocks)
            break
    else:
        raise CheckpointError("weights", source, f"spans {found} frames in its blocks", f"only {', '.join(OURS)} can be converted")  # fmt: skip
    if fast is None:
        return section
    fuse = state.get("s1_fuse.conv_f2s.weight")
    return dataclasses.replace(
        section,
        alpha=_alpha(cfg, section.alpha),
        beta_inv=section.width // fast.shape[0],
        fusion_kernel=section.fusion_kernel if fuse is None else fuse.shape[2],
        slow_frames="spread",
    )


def _alpha(cfg: object, usual: int) -> int:
    """SLOWFAST.ALPHA of the YAML text that PySlowFast stores with its weights."""
    try:
        alpha = yaml.safe_load(cfg)["SLOWFAST"]["ALPHA"] if isinstance(cfg, str) else usual
    except (yaml.YAMLError, KeyError, TypeError):
        return usual
    return alpha if isinstance(alpha, int) else usual


def _count(state: Mapping[str, Tensor], template: str) -> int:
    count = 0
    while template.format(count) in state:
        count += 1
    return count


def _depth(layout: Layout, source: str) -> int:
    depths = [depth for depth, known in LAYOUTS.items() if known == layout]
    if not depths:
        raise CheckpointError("weights", source, f"has stages of {layout.blocks} blocks", f"only depths {', '.join(map(str, LAYOUTS))} can be converted")  # fmt: skip
    return depths[0]


def inflate(state: Mapping[str, Tensor], name: str, source: str) -> Weights:
    """A 2D ResNet's weights (torchvision's names) for a network of one pathway, as in I3D (arXiv 1705.07750, section 2.4).

    A kernel is repeated over its frames and divided by their number, so that a clip that stands still gives the features of
    its frame. Non-local blocks start afresh: they add nothing at first.

    Raises:
        CheckpointError: unknown or missing keys, or tensors of other shapes than the model's.
        ConfigError: `name` is no network of one pathway.
    """
    if name not in INFLATABLE:
        raise ConfigError(
            "model", name, "is no network that a 2D ResNet can start", f"give --model, one of {', '.join(INFLATABLE)}"
        )
    layout = Layout(
        tuple(_count(state, f"layer{index + 1}.{{}}.conv1.weight") for index in range(4)),  # type: ignore[arg-type]
        bottleneck="layer1.0.conv3.weight" in state,
    )
    section = ModelSection(name=name, depth=_depth(layout, source), width=state["conv1.weight"].shape[0])
    return Weights(section=section, state=_adopt(TORCHVISION, state, section, "fc", source))


def _adopt(
    names: Names, state: Mapping[str, Tensor], section: ModelSection, head: str, source: str
) -> dict[str, Tensor]:
    """Our state dict from theirs; `head` is their name of the classifier."""
    classes = state[f"{head}.weight"].shape[0] if f"{head}.weight" in state else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(section, classes).state_dict()
    fresh = {key for key in model if names is TORCHVISION and key.startswith("nonlocals.")}
    theirs = names.translate(model.keys() - fresh)
    optional = {other for other in theirs.values() if other.endswith(COUNTER)}
    unknown, missing = state.keys() - theirs.values(), theirs.values() - state.keys() - optional
    if unknown or missing:
        problem = "; ".join(
            f"{what} {listed(keys)}" for what, keys in (("unknown keys", unknown), ("missing keys", missing)) if keys
        )
        raise CheckpointError(
            "weights", source, f"does not hold the weights of {section.name} R{section.depth} ({problem})",
            f"give weights of one of {', '.join(OURS)}",
        )  # fmt: skip
    other_shape = []
    for key, other in theirs.items():
        if other in state:
            value = _fitted(state[other], model[key])
            if value is None:
                other_shape.append(f"{other} {tuple(state[other].shape)}, not {tuple(model[key].shape)}")
            else:
                model[key] = value
    if other_shape:
        raise CheckpointError("weights", source, f"has tensors of other shapes ({listed(other_shape)})", "give weights of a published network, without changes")  # fmt: skip
    return model


def _fitted(value: Tensor, like: Tensor) -> Tensor | None:
    """A tensor in the shape of ours, where it is the same, a 2D kernel, or an old sub-batch norm's [C, 1, 1, 1]."""
    if value.dim() == 4 and like.dim() == 5 and value.shape == like.shape[:2] + like.shape[3:]:
        value = value.unsqueeze(2).expand_as(like) / like.shape[2]
    elif value.dim() == 4 and like.dim() == 1 and value.shape[1:] == (1, 1, 1):
        value = value.flatten()
    return value.to(like.dtype).clone() if value.shape == like.shape else None


def listed(keys: Iterable[str]) -> str:
    """Keys in order, all of them: which are wrong is what an error has to say."""
    return ", ".join(sorted(keys))
