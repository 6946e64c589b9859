"""A running mean of the weights, often better than the last ones: m <- d m + (1 - d) w after every step.

Source: Polyak averaging with exponential weights, as the field's recipes use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The mean of those weights of a module that are trained.

    The decay of step t is min(d, (1 + t) / (10 + t)), so that the mean forgets where it began.

    Args:
        weights: as the optimiser sees them.
        decay: d, in (0, 1).
    """

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self.weights, self.decay, self.steps = list(weights), decay, 0
        self.means = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimiser."""
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, weight in zip(self.means, self.weights, strict=True):
            mean.lerp_(weight.detach(), share)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the module has the mean instead of its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, weight in zip(self.means, self.weights, strict=True):
            before = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: the means by their number, and how many steps they are over."""
        return {"steps": torch.tensor(self.steps), **{str(k): mean for k, mean in enumerate(self.means)}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint.

        Raises:
            ValueError: it is of other weights.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"a running mean of {len(state) - 1} weights, expected {len(self.means)}")
        self.steps = int(state["steps"])
        for place, mean in enumerate(self.means):
            mean.copy_(state[str(place)])
