"""What points are worth: a model's masks under several prompts, and models that were trained in different ways.

Two kinds of comparison, never mixed in one table; a column says which:

    PROMPTED  one trained model, prompted in different ways: what its mask decoder makes of prompts other than its own
    TRAINED   models trained in different ways, each with its own configuration

What a model says depends on no prompt of its mask decoder. So an image is encoded and its questions are answered once
for all variants (`SharedReplies`), and only masks are made anew. Each variant is a system of `evaluation.run`: its
predictions lie on disk, a killed run goes on, and whoever has them can score them again.

Source: the paper's Table 8 (thresholds and numbers of points) and its ablation of [SEG], discrete points and DtoC.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark
from readseg.evaluation.predictions import Result
from readseg.evaluation.run import model_system, run_systems
from readseg.inference.queries import EncodedImage, ModelAnswer
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from readseg.model.config import Prompt, ReadConfig

Ablation = Literal["points", "prompt", "alignment"]
"""What is varied: thresholds and numbers of points, what prompts the mask decoder, or where the token grid lies."""

PROMPTED, TRAINED = "prompted", "trained"
"""The two kinds of comparison, as their column names them."""

RATIOS = ((0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
"""(t_pos, t_neg) of Table 8."""

NUMBERS = (10, 30, 60)
"""|P| of Table 8: the most points of one [SEG]."""

_TOGETHER = 16  # answers whose masks are made as one batch, as `Segmenter.segment` does: bounds the memory


@dataclass(frozen=True)
class Variant:
    """One way to prompt a model."""

    name: str
    key: str
    prompt: Prompt
    points: PointConfig
    own: bool = False
    impossible: str = ""


@dataclass(frozen=True)
class Ablated:
    """What an ablation found out about one model."""

    model: str
    config: ReadConfig
    variants: tuple[Variant, ...]
    results: Mapping[str, Result]

    @property
    def own(self) -> Result:
        """Prompted as the model was saved."""
        return self.results[next(variant.key for variant in self.variants if variant.own)]


class SharedReplies:
    """A model whose answers to the last image are kept: other prompts change its masks, not its words.

    To `evaluation.run` it is a model like any other: what `segment` gives is what `Segmenter.segment` gives.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._encoded: EncodedImage | None = None
        self._replies: dict[tuple[Any, ...], list[ModelAnswer]] = {}

    def segment(
        self,
        image: Image.Image,
        query: Sequence[str],
        /,
        *,
        asks: bool | None,
        prompt: Prompt | None,
        points: PointConfig | None,
        force: bool,
        sentence: bool | None,
    ) -> list[Segmentation]:
        """Answers to all queries about an image; arguments and errors as `Segmenter.segment`."""
        encoded = self._segmenter.encode(image)
        if encoded is not self._encoded:  # the segmenter gives the same object for the same pixels
            self._encoded, self._replies = encoded, {}
        asked = (tuple(query), asks, force, sentence)
        if asked not in self._replies:
            self._replies[asked] = self._segmenter.reply(encoded, query, asks=asks, force=force, sentence=sentence)
        replies = self._replies[asked]
        found: list[Segmentation] = []
        for start in range(0, len(replies), _TOGETHER):
            part = replies[start : start + _TOGETHER]
            found += self._segmenter.decode(encoded, part, prompt=prompt, points=points)
        return found


def changed_points(config: ReadConfig, **changes: float | str | None) -> PointConfig:
    """A model's settings of points with some of them changed; None leaves one as it is."""
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    try:
        points = dataclasses.replace(config.points, **given)
        config.check_points(points)
    except ValueError as error:
        raise ReadsegError(str(error)) from error
    return points


def point_variants(
    config: ReadConfig,
    points: PointConfig | None = None,
    *,
    ratios: Sequence[tuple[float, float]] = RATIOS,
    numbers: Sequence[int] = NUMBERS,
) -> tuple[Variant, ...]:
    """Table 8: every (t_pos, t_neg) with every number of points; the model's own setting first if not among them."""
    base = points or config.points
    prompt: Prompt = "both" if config.prompt == "seg" else config.prompt
    variants = []
    for t_pos, t_neg in dict.fromkeys(ratios):
        for number in dict.fromkeys(numbers):
            try:
                chosen = dataclasses.replace(base, t_pos=t_pos, t_neg=t_neg, num_points=number, threshold="range")
            except ValueError as error:
                raise ReadsegError(f"ratio {t_pos:g}/{t_neg:g}, {number} points: {error}") from error
            name = f"{t_pos:g}/{t_neg:g}, {number} points"
            variants.append(Variant(name, f"{t_pos}-{t_neg}-{number}", prompt, chosen))
    return _with_own(config, variants)


def prompt_variants(config: ReadConfig, points: PointConfig | None = None) -> tuple[Variant, ...]:
    """[SEG] and points, each alone and both together, with discrete points and with continuous ones (DtoC)."""
    base = points or config.points
    discrete, moved = dataclasses.replace(base, dtoc=False), dataclasses.replace(base, dtoc=True)
    variants = [
        Variant("[SEG] only", "seg", "seg", base),
        Variant("points only, discrete", "points-discrete", "points", discrete),
        Variant("points only, DtoC", "points-dtoc", "points", moved),
        Variant("[SEG] and points, discrete", "both-discrete", "both", discrete),
        Variant("[SEG] and points, DtoC", "both-dtoc", "both", moved),
    ]
    return _with_own(config, variants)


def alignment_variants(config: ReadConfig, points: PointConfig | None = None) -> tuple[Variant, ...]:
    """Where the token grid lies on the image: exactly, or rounded as in READ's training.

    The rounding is one of the centre crop: a model with another view cannot be prompted so, and its variant says why.
    """
    base = points or config.points
    prompt: Prompt = "both" if config.prompt == "seg" else config.prompt
    variants = []
    for alignment in ("exact", "reference"):
        chosen = dataclasses.replace(base, alignment=alignment)
        try:
            config.check_points(chosen)
            reason = ""
        except ValueError as error:
            reason = str(error)
        variants.append(Variant(alignment, alignment, prompt, chosen, impossible=reason))
    return _with_own(config, variants)


def ablate(
    segmenter: Segmenter,
    benchmark: Benchmark,
    variants: Sequence[Variant],
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Ablated:
    """Asks a model the questions of a benchmark once, and makes the masks of each variant."""
    shared = SharedReplies(segmenter)
    systems = []
    for variant in sorted(variants, key=lambda variant: not variant.own):
        if not variant.impossible:
            system = model_system(shared, benchmark, settings=settings, prompt=variant.prompt, points=variant.points)
            systems.append(dataclasses.replace(system, name=variant.key))
    results = run_systems(systems, benchmark, folder=folder, limit=limit, progress=progress)
    return Ablated(name, segmenter.model.config, tuple(variants), results)


def cells(config: ReadConfig, points: PointConfig) -> int:
    """How many cells of the token grid a point can come from: (n // downsample)^2, fewer where some lie outside."""
    return (math.isqrt(config.num_image_tokens) // points.downsample) ** 2


def describe(config: ReadConfig, prompt: Prompt, points: PointConfig) -> str:
    """What prompts the mask decoder, in words."""
    if prompt == "seg":
        return "[SEG] only"
    rule = f"{points.t_pos:g}/{points.t_neg:g}" if points.threshold == "range" else "mean +/- std/2"
    side = math.isqrt(cells(config, points))
    return (
        f"{'points only' if prompt == 'points' else '[SEG] and points'}: {rule}, {points.num_points} points of "
        f"{side} x {side} cells, {'DtoC' if points.dtoc else 'discrete'}, {points.alignment}"
    )


def _with_own(config: ReadConfig, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants with the model's own setting marked, or put before them where it is none of them."""

    def effective(prompt: Prompt, points: PointConfig) -> tuple[Prompt, PointConfig | None]:
        if prompt == "seg":
            return prompt, None
        if points.threshold == "std":  # takes its thresholds from the map
            points = dataclasses.replace(points, t_pos=1.0, t_neg=0.0)
        return prompt, points

    own = effective(config.prompt, config.points)
    place = next((k for k, v in enumerate(variants) if effective(v.prompt, v.points) == own and not v.impossible), None)
    if place is None:
        name = describe(config, config.prompt, config.points)
        return (Variant(name, "own", config.prompt, config.points, own=True), *variants)
    return tuple(dataclasses.replace(v, own=True) if k == place else v for k, v in enumerate(variants))
