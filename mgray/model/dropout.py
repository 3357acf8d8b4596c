"""Dropout whose masks belong to clips: the same clip loses the same features, and blocks, on any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit word
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on int64 words, which wrap alike on every device."""
    value = value + _GOLDEN
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Right shift that moves zeros in, as on unsigned words."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(words: Tensor) -> Tensor:
    """Numbers in [0, 1) of the upper 24 bits."""
    return _shift(words, 40).to(torch.float32) / float(1 << 24)


class ClipDropout(nn.Dropout):
    """`nn.Dropout` drawn from a counter: the mask of clip n is a function of `keys_N[n]` and the feature's number."""

    keys_N: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop features of [N, ...] with probability p; raises ValueError where there is no key for each clip."""
        if not self.training or self.p == 0.0:
            return input
        if self.keys_N is None or self.keys_N.shape[0] != input.shape[0]:
            raise ValueError(f"dropout needs one key for each of {input.shape[0]} clips")
        features = torch.arange(input[0].numel(), device=input.device)
        words = _mix(_mix(self.keys_N.to(input.device))[:, None] ^ features)
        return input * (_uniform(words) >= self.p).view(input.shape) / (1.0 - self.p)


class ClipStochasticDepth(StochasticDepth):  # type: ignore[misc]
    """torchvision's `StochasticDepth` by rows, drawn from a counter: whether clip n skips is a function of `keys_N[n]`.

    A block of a transformer calls it for its attention and again for its MLP. Each call takes the next word of a clip.
    """

    keys_N: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Zero whole clips of [N, ...] with probability p; raises ValueError where there is no key for each clip."""
        if not self.training or self.p == 0.0:
            return input
        if self.keys_N is None or self.keys_N.shape[0] != input.shape[0]:
            raise ValueError(f"stochastic depth needs one key for each of {input.shape[0]} clips")
        self.keys_N = _mix(self.keys_N.to(input.device))
        kept_N = (_uniform(self.keys_N) >= self.p).to(input.dtype) / (1.0 - self.p)
        output: Tensor = input * kept_N.view(-1, *[1] * (input.dim() - 1))
        return output


def convert_dropout(model: nn.Module) -> nn.Module:
    """Turn each `nn.Dropout` and `StochasticDepth` of a model into one drawn by clip, in place.

    Raises:
        ValueError: a `StochasticDepth` drops whole batches, which has no meaning for a batch shared out over ranks.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = ClipDropout
        elif type(module) is StochasticDepth:
            if module.mode != "row":
                raise ValueError(f"stochastic depth of mode {module.mode} cannot be drawn by clip, only row can")
            module.__class__ = ClipStochasticDepth
    return model


def set_clip_keys(model: nn.Module, keys_N: Tensor) -> None:
    """Tell every dropout of a model which clips the next batch holds (`keys_N`: int64, one for each clip)."""
    dropouts = (module for module in model.modules() if isinstance(module, ClipDropout | ClipStochasticDepth))
    for number, dropout in enumerate(dropouts):
        dropout.keys_N = keys_N ^ (number << 48)
