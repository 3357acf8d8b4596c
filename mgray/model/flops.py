"""What a network costs: operations of a clip, forward and backward, its parameters and its batch norms.

Those of the published networks at the shapes of our workloads are in `costs.json`, so that a plan loads no torch; `python -m mgray.model.flops`
writes it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgray.config import ModelSection, Run
from mgray.model import build_model
from mgray.plan import ClipShape, Plan

if TYPE_CHECKING:
    from torch import nn

CLIPS = 2
"""Counted at once: one clip of a tiny shape is too few for batch norm."""
COSTS = Path(__file__).with_name("costs.json")
CLASSES = 400
"""Of the classifier in `costs.json`; they hardly count."""
FULL_DEPTH = 50
"""Networks of fewer layers are counted in no time."""
EPOCH = 100_000
"""Clips of an epoch whose schedule visits all of its shapes."""


@dataclass(frozen=True)
class ModelCost:
    """A network on meta tensors, which have shapes and no values."""

    section: ModelSection
    num_classes: int
    _flops: dict[ClipShape, float] = field(default_factory=dict)

    @functools.cached_property
    def model(self) -> nn.Module:
        import torch

        with torch.device("meta"):
            return build_model(self.section, self.num_classes).train()

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """Its entry in `costs.json`; empty where there is none."""
        own = {"model": dataclasses.asdict(_costly(self.section)), "classes": self.num_classes}
        entries: list[dict[str, Any]] = json.loads(COSTS.read_text()) if COSTS.is_file() else []
        return next((entry for entry in entries if own.items() <= entry.items()), {})

    @functools.cached_property
    def parameters(self) -> int:
        if self.known:
            return int(self.known["parameters"])
        return sum(parameter.numel() for parameter in self.model.parameters())

    @functools.cached_property
    def norm_layers(self) -> int:
        if self.known:
            return int(self.known["norm_layers"])
        from mgray.model.norm import GroupedBatchNorm3d

        return sum(isinstance(module, GroupedBatchNorm3d) for module in self.model.modules())

    def clip_flops(self, shape: ClipShape) -> float:
        """Operations of one clip in training, two for a multiply-add: convolutions, products of matrices and attention."""
        if shape not in self._flops:
            known = self.known.get("flops", {}).get(_name(shape))
            self._flops[shape] = self.count(shape) if known is None else float(known)
        return self._flops[shape]

    def count(self, shape: ClipShape) -> float:
        """The same, counted now."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            clips = torch.empty(CLIPS, 3, shape.frames, shape.height, shape.width)
            self.counted_part(clips).sum().backward()
        return float(counter.get_total_flops()) / CLIPS

    @functools.cached_property
    def counted_part(self) -> nn.Module:
        """The network without what has no operations that count, ten times as fast on meta tensors."""
        import copy

        from torch import nn

        from mgray.model.norm import GroupedBatchNorm3d

        model = copy.deepcopy(self.model)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, GroupedBatchNorm3d | nn.BatchNorm3d | nn.ReLU | nn.Dropout):
                    setattr(module, name, nn.Identity())
        return model


def _costly(section: ModelSection) -> ModelSection:
    """The model without what changes neither operations nor parameters."""
    return dataclasses.replace(section, init="", dropout=0.0)


def _name(shape: ClipShape) -> str:
    return f"{shape.frames}x{shape.height}x{shape.width}"


def costs_of(runs: Iterable[Run]) -> list[tuple[ModelCost, set[ClipShape]]]:
    """Networks of full depth in these runs, at the shapes of their schedules and baselines; the classifier has 400 classes."""
    found: dict[ModelSection, set[ClipShape]] = {}
    for run in runs:
        if run.model.depth >= FULL_DEPTH:
            plan = Plan.compile(run.plan, EPOCH)
            shapes = {batch.clip for phase in (*plan.phases, *plan.baseline().phases) for batch in phase.batches}
            found.setdefault(_costly(run.model), set()).update(shapes)
    return [(ModelCost(section, CLASSES), shapes) for section, shapes in found.items()]


def counted(cost: ModelCost, shapes: Iterable[ClipShape]) -> dict[str, Any]:
    """An entry of `costs.json`, counted now."""
    from mgray.model.norm import GroupedBatchNorm3d

    return {
        "model": dataclasses.asdict(cost.section),
        "classes": cost.num_classes,
        "parameters": sum(parameter.numel() for parameter in cost.model.parameters()),
        "norm_layers": sum(isinstance(module, GroupedBatchNorm3d) for module in cost.model.modules()),
        "flops": {_name(shape): cost.count(shape) for shape in sorted(shapes, key=_name)},
    }


def main() -> None:
    """Write `costs.json`."""
    from workloads import WORKLOADS

    entries = [counted(cost, shapes) for cost, shapes in costs_of(build() for build in WORKLOADS.values())]
    COSTS.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
