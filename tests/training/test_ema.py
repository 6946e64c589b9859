"""The running mean of weights, against the sum that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from readseg.training.loop import Ema


def test_it_is_the_weighted_mean_of_what_the_weights_were() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([weight], decay=0.5)
    history, shares = [1.0], [1.0]
    for step in range(12):
        with torch.no_grad():
            weight.fill_(float(step**2))
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        history.append(float(step**2))
        shares = [share * decay for share in shares] + [1 - decay]
    assert sum(shares) == pytest.approx(1.0)
    with ema.applied():
        assert weight.item() == pytest.approx(sum(a * b for a, b in zip(history, shares, strict=True)))
    assert weight.item() == 121.0


def test_it_goes_on_from_a_checkpoint() -> None:
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    one, other = Ema([first], 0.9), Ema([second], 0.9)
    for step in range(4):
        with torch.no_grad():
            first.add_(step)
        one.update()
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    with torch.no_grad():
        first.add_(1.0)
        second.copy_(first)
    for ema in (one, other):
        ema.update()
    assert torch.equal(one.means[0], other.means[0])


def test_a_mean_of_other_weights_is_refused() -> None:
    state = Ema([nn.Parameter(torch.zeros(3))], 0.9).state_dict()
    with pytest.raises(ValueError, match="of 1 weights, expected 2"):
        Ema([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))], 0.9).load_state_dict(state)
