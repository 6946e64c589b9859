"""A model without weights that answers by a rule: for tests of what is asked and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from readseg.core.masks import encode_rle
from readseg.evaluation.predictions import Outcome, Prediction
from readseg.evaluation.run import FixedAnswer


def left_or_nothing(image: Image.Image, text: str) -> FixedAnswer:
    """The left third of the image; for a text with an odd number of characters a refusal."""
    masks = np.zeros((1, image.height, image.width), bool)
    masks[:, :, : image.width // 3] = True
    if len(text) % 2:
        return FixedAnswer("no.", False, masks[:0])
    return FixedAnswer(f"{text}: [SEG].", True, masks)


@dataclass
class RuleModel:
    """Answers from a rule about (image, text); keeps what it was asked.

    calls: for each call the texts and the options.
    """

    rule: Callable[[Image.Image, str], FixedAnswer] = left_or_nothing
    calls: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)

    def segment(self, image: Image.Image, query: Sequence[str], /, **options: Any) -> list[FixedAnswer]:
        self.calls.append((list(query), options))
        return [self.rule(image, text) for text in query]


def prediction(
    key: str, present: bool | None, answer: str, masks: Sequence[np.ndarray] = (), **changes: Any
) -> Prediction:
    """An answer to a question about a small image; `changes` are fields."""
    values: dict[str, Any] = {
        "key": key,
        "image": key.split("/")[0],
        "size": (4, 6),
        "question": "where?",
        "present": present,
        "targets": (),
        "section": "",
        "kind": "",
        "tags": frozenset(),
        "answer": answer,
        "claimed": bool(masks),
        "masks": tuple(map(encode_rle, masks)),
        "finished": True,
    }
    return Prediction(**{**values, **changes})


def outcome(
    key: str, present: bool | None, said: bool, pairs: Sequence[tuple[int, int]] = (), **changes: Any
) -> Outcome:
    """How a question went: intersection and union of each mask; `changes` are fields."""
    values: dict[str, Any] = {"answer": "", **vars(prediction(key, present, ""))}
    counts = {"intersections": tuple(i for i, _ in pairs), "unions": tuple(u for _, u in pairs)}
    return Outcome(**{**values, "said": said, **counts, "right_words": False, **changes})


PLACES = [
    *(("scenes", "category"), ("scenes", "reasoning"), ("descriptions", "reasoning")),
    *(("phrasings", "category"), ("pairs", "reasoning"), ("scenes", "colour")),
]


def random_outcomes(skill: float, seed: int = 0, questions: int = 160) -> list[Outcome]:
    """Questions of all parts and of none, some with two masks; the same for every skill, the answers are not."""
    world, own = np.random.default_rng(seed), np.random.default_rng([seed, int(100 * skill)])
    made = []
    for k in range(questions):
        section, kind = PLACES[world.integers(len(PLACES))]
        present = bool(world.random() < 0.7)
        unions = tuple(int(u) for u in world.integers(50, 99, 1 if world.random() < 0.8 else 2))
        said = bool(own.random() < (0.9 if present else 0.2))
        inter = tuple(int(u * min(1, own.random() * skill * 2)) if said and present else 0 for u in unions)
        if not present:
            unions, inter = ((40,), (0,)) if said else ((0,), (0,))
        tags = frozenset({("short", "long")[k % 2]})
        told: dict[str, Any] = {"image": f"image {k // 4}", "section": section, "kind": kind, "tags": tags}
        made.append(outcome(f"{k // 4}/{k % 4}", present, said, list(zip(inter, unions, strict=True)), **told))
    return made
