"""A model without weights that answers by a rule: for tests of what is asked and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from readseg.evaluation.run import Said


def left_or_nothing(image: Image.Image, text: str) -> Said:
    """The left third of the image; for a text with an odd number of characters a refusal."""
    masks = np.zeros((1, image.height, image.width), bool)
    masks[:, :, : image.width // 3] = True
    if len(text) % 2:
        return Said("no.", False, masks[:0])
    return Said(f"{text}: [SEG].", True, masks)


@dataclass
class RuleModel:
    """Answers from a rule about (image, text); keeps what it was asked.

    calls: for each call the texts and the options.
    """

    rule: Callable[[Image.Image, str], Said] = left_or_nothing
    calls: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)

    def segment(self, image: Image.Image, query: Sequence[str], /, **options: Any) -> list[Said]:
        self.calls.append((list(query), options))
        return [self.rule(image, text) for text in query]
