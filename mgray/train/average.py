"""A moving average of a model's weights, counted in clips so that it does not depend on how they fall into steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The mean of a model's states after each step, each with a weight that decays with the clips trained on since.

    A state's weight is the clips of its step, as far as `decay ** (clips / base_clips)` has left of them; the weights are scaled
    to sum to 1 (as in Adam, arXiv 1412.6980, section 3), so that the initial state has none. Running statistics are averaged
    likewise; whole numbers are the model's own. Every rank computes it for itself, from weights that are equal on all.

    Args:
        decay: of a base batch's clips, in (0, 1).
        base_clips: clips of a base batch.
    """

    def __init__(self, model: nn.Module, decay: float, base_clips: int) -> None:
        self._log_decay = math.log(decay) / base_clips
        self._model: dict[str, Tensor] = model.state_dict()
        self.state: dict[str, Tensor] = {name: value.clone() for name, value in self._model.items()}

    def share(self, clips: int, clips_before: int) -> float:
        """The newest state's part of the average after a step of `clips`, with `clips_before` in the steps before it."""
        return math.expm1(self._log_decay * clips) / math.expm1(self._log_decay * (clips_before + clips))

    @torch.no_grad()
    def update(self, clips: int, clips_before: int) -> None:
        """Take in the model's state after a step of `clips`, with `clips_before` in the steps before it."""
        averages, states = [], []
        for name, value in self._model.items():
            if value.is_floating_point():
                averages.append(self.state[name])
                states.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, states, self.share(clips, clips_before))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a stored `state`.

        Raises:
            KeyError: it is that of another model.
        """
        for name, value in self.state.items():
            value.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the average; what it re-estimates (precise BN) stays with the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._model.items():
            average = self.state[name]
            held = value.clone()
            value.copy_(average)
            average.copy_(held)
