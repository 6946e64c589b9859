"""What every study of a benchmark starts from: a question, the model's reply to it, and what is true.

An image is encoded once and all its questions are answered as one batch; a study then examines each `Case`. Frame:
pixels of the image; targets hold 0, 1 and 255, which is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from readseg.core.masks import IGNORED, union
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question
from readseg.evaluation.run import ask_together
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.segmenter import Segmenter


class TargetMask(NamedTuple):
    """One mask that is expected, and whose it is."""

    target: UInt8[np.ndarray, "H W"]  # in {0, 1, 255}
    seg_indices: tuple[int, ...]  # which [SEG] of the answer speak of it, from 0; none where it holds too few


@dataclass(frozen=True, eq=False)
class Case:
    """A question about an object of a page, the model's reply under the benchmark's protocol, and the truth."""

    query: Question
    page: ImageQuestions
    encoded: EncodedImage = field(repr=False)
    reply: ModelAnswer = field(repr=False)
    targets: tuple[TargetMask, ...] = field(repr=False)  # as the benchmark matches them; none for a false premise


def cases_of(segmenter: Segmenter, benchmark: Benchmark, page: ImageQuestions) -> list[Case]:
    """All questions of a page that ask for an object, with the model's replies, in their order.

    "order" gives the k-th target the k-th [SEG]; "union" gives the one target all of them. Under the protocol "forced"
    the answer is given, as in `evaluation.run`. A [SEG] too many has no target: it is left to evaluation.
    """
    encoded = segmenter.encode(page.image)
    queries = [query for query in page.questions if query.present is not None]
    cases = []
    for query, reply in zip(queries, ask_together(benchmark, queries, partial(segmenter.reply, encoded)), strict=True):
        targets: tuple[TargetMask, ...] = ()
        if query.present:
            segs = range(reply.answer.ids.count(segmenter.model.config.seg_token_id))
            masks, ignored = page.read_targets(query, encoded.frame.hw)
            pairs: list[tuple[np.ndarray, tuple[int, ...]]] = [(union(masks, encoded.frame.hw), tuple(segs))]
            if benchmark.match == "order":
                pairs = [(mask, (k,) if k in segs else ()) for k, mask in enumerate(masks)]
            targets = tuple(TargetMask(np.where(ignored, IGNORED, mask).astype(np.uint8), own) for mask, own in pairs)
        cases.append(Case(query, page, encoded, reply, targets))
    return cases
