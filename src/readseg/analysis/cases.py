"""What every study of a benchmark starts from: a question, the model's reply to it, and what is true.

An image is encoded once and all its questions are answered as one batch; a study then looks at each `Case`. Frame:
pixels of the image; targets hold 0, 1 and 255, which is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from readseg.core.masks import IGNORED, intersection_and_union, union
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.segmenter import Segmenter


class Unit(NamedTuple):
    """One mask that is expected, and whose it is.

    target: (H, W) in {0, 1, 255}.
    places: which [SEG] of the answer speak of it, counted from 0; none where the answer holds too few.
    """

    target: UInt8[np.ndarray, "H W"]
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A question about an object, the reply, and the truth.

    Attributes:
        query: of the benchmark.
        page: that it belongs to.
        encoded: the page's image.
        reply: of the model, under the benchmark's protocol.
        units: the masks that are expected with their [SEG], as the benchmark matches them; none for a false premise.
    """

    query: Question
    page: ImageQuestions
    encoded: EncodedImage = field(repr=False)
    reply: ModelAnswer = field(repr=False)
    units: tuple[Unit, ...] = field(repr=False)


def cases_of(segmenter: Segmenter, benchmark: Benchmark, page: ImageQuestions) -> list[Case]:
    """All questions of a page that ask for an object, with the model's replies, in their order.

    "order" gives the k-th target the k-th [SEG]; "union" gives the one target all of them. Under the protocol "forced"
    the answer is given, as in `evaluation.run`. A [SEG] too many has no unit: it is left to evaluation.

    Raises:
        ReadsegError: the image or a mask cannot be read, a mask is not of the image's size, or a question cannot be
            asked.
    """
    encoded = segmenter.encode(page.image)
    forced = benchmark.protocol == "forced"
    replies: dict[int, ModelAnswer] = {}
    for sentence in dict.fromkeys(query.sentence for query in page.questions):
        places = [
            k for k, query in enumerate(page.questions) if query.sentence is sentence and query.present is not None
        ]
        worded = sentence is not None
        found = segmenter.reply(
            encoded,
            [page.questions[k].text for k in places],
            asks=worded,
            force=forced and worded,
            sentence=sentence,
        )
        replies.update(zip(places, found, strict=True))
    seg = segmenter.model.config.seg_token_id
    cases = []
    for k in sorted(replies):
        units = _units(benchmark, page, page.questions[k], replies[k], encoded.frame.hw, seg)
        cases.append(Case(page.questions[k], page, encoded, replies[k], units))
    return cases


def counts_of(masks: Bool[np.ndarray, "S H W"], unit: Unit) -> tuple[int, int]:
    """Intersection and union, in pixels that count, of the masks of a unit's [SEG] with its target.

    Args:
        masks: one for each [SEG] of the answer.
        unit: whose target.
    """
    mask = union([masks[k] for k in unit.places], (unit.target.shape[0], unit.target.shape[1]))
    return intersection_and_union(mask, unit.target)


def _units(
    benchmark: Benchmark, page: ImageQuestions, query: Question, reply: ModelAnswer, hw: tuple[int, int], seg: int
) -> tuple[Unit, ...]:
    if not query.present:
        return ()
    said = reply.answer.ids.count(seg)
    targets = [np.asarray(target) for target in query.targets()]
    for target in targets:
        if target.shape != hw:
            raise ReadsegError(
                f"{page.image_id}: the image is {hw[0]} x {hw[1]}, a mask of it {' x '.join(map(str, target.shape))} "
                "(height x width)"
            )
    ignored = union([target == IGNORED for target in targets], hw)

    def counted(target: np.ndarray) -> UInt8[np.ndarray, "H W"]:
        return np.where(ignored, IGNORED, target == 1).astype(np.uint8)

    if benchmark.match == "order":
        return tuple(Unit(counted(target), (k,) if k < said else ()) for k, target in enumerate(targets))
    return (Unit(counted(union([target == 1 for target in targets], hw)), tuple(range(said))),)
