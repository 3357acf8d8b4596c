"""`mgray convert`: weights from and to other libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mgray.cli.parse import Command, demand, parse
from mgray.config import ModelSection


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")] = ""
    """A PySlowFast checkpoint (.pyth), a 2D ResNet of torchvision (needs --model), or weights of ours: a file or a run's folder."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = ""
    """File to write: weights for --model.init, or from weights of ours a PySlowFast checkpoint."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """The network that a 2D ResNet is inflated to: slow, i3d or i3d_nln; what PySlowFast trained is recognised without it."""


def _convert(arguments: Sequence[str]) -> None:
    command = parse(ConvertArguments, arguments, CONVERT)
    demand("IN", command.source, "mgray convert IN OUT")
    demand("OUT", command.out, "mgray convert IN OUT")
    from mgray.train.initial import convert

    weights = convert(command.source, command.out, name=command.model)
    plain = dataclasses.asdict(ModelSection())
    settings = [
        f"--model.{key.replace('_', '-')} {value}"
        for key, value in dataclasses.asdict(weights.section).items()
        if key not in ("init", "dropout") and (key == "name" or value != plain[key])
    ]
    millions = sum(value.numel() for key, value in weights.state.items() if key.endswith(("weight", "bias"))) / 1e6
    if weights.section.name == "slowfast" and weights.section.slow_frames == "centred":
        print(
            "mgray: note: these weights saw centred frames in the slow pathway, PySlowFast will show them others; "
            "--model.slow-frames spread trains for those"
        )
    print(f"{command.out}: {millions:.2f} M parameters, {weights.num_classes} classes; settings: {' '.join(settings)}")


CONVERT = Command(
    name="convert",
    arguments="IN OUT",
    summary="Turn weights of PySlowFast or a 2D ResNet into ours for --model.init, or ours into PySlowFast's.",
    examples=(
        "mgray convert SLOWFAST_8x8_R50.pyth slowfast.pt",
        "mgray convert resnet50.pth i3d.pt --model i3d",
        "mgray convert runs/folder folder.pyth",
    ),
    run=_convert,
)
