"""The processes that work together, as a launcher started them; one where none did.

`accelerate launch` and `torchrun` tell each process its rank; here that becomes a group which can wait and gather.
"""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The group of processes; on CPUs too, where there is nothing faster."""
    return PartialState(cpu=not torch.accelerator.is_available())
