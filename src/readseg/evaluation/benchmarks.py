"""Benchmarks: a fixed set of questions, a model's answers to them, and blind answers beside them.

Protocol of the scenes: generated. The model gets picture and question, decides by itself whether to answer with
[SEG], and what it draws is compared with the exact masks, in pixels of the image. The k-th mask of an answer
belongs to the k-th target; a missing mask counts as empty, and one too many against an empty target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import track

from readseg.config import Prompt
from readseg.data.scenes.compose import Rendered, make_scene, render
from readseg.data.scenes.questions import Question, ask
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import Prediction, PredictionFile
from readseg.masks import decode_rle, encode_rle, intersection_and_union, union

FIRST_TEST_SEED = 500_000
"""Test scenes have the seeds from here on; training draws from 1,000,000 on."""

SECTIONS = ("scenes",) * 6 + ("phrasings",) * 2 + ("descriptions", "pairs")
"""Section of the test scene whose number modulo 10 is the place here. "scenes": all of it is new but words and pairs of
classes are those of training; the others hold out the phrasings, the descriptions (reasoning questions only), or
put two classes together that training never does."""

PROMPTS: tuple[Prompt, ...] = ("both", "points", "seg")
"""What prompts the mask decoder: points and [SEG] (the method), points only, [SEG] only."""

BLIND = ("largest object", "random object")
"""Baselines that know where the objects are and do not read the question."""


class Answers(Protocol):
    """What evaluation asks of a `Segmentation`: the text, whether the object is said to be there, (S, H, W) masks."""

    @property
    def answer(self) -> str:
        """The answer's text."""

    @property
    def present(self) -> bool | None:
        """Whether the object is said to be there; None where no segmentation was asked for."""

    @property
    def masks(self) -> np.ndarray:
        """(S, H, W) bool, one mask for each [SEG] of the answer."""


class Segments(Protocol):
    """What evaluation asks of a `Segmenter`."""

    def segment(self, image: Any, query: Sequence[str], /, *, asks: bool, prompt: Prompt) -> Sequence[Answers]:
        """Answers to all queries about one image, with the given prompt of `PROMPTS`."""


@dataclass(frozen=True)
class SceneSet:
    """Which scenes and questions: by default the fixed test set.

    Of ten scenes in a row six are new by their seed only; the others hold more out, as `SECTIONS` says. Any first part
    of the set is mixed alike, so a small number of scenes is a fair sample.

    Attributes:
        scenes: number of scenes.
        questions: about each scene.
        first_seed: of the first scene.
    """

    scenes: int = 600
    questions: int = 6
    first_seed: int = FIRST_TEST_SEED

    def __post_init__(self) -> None:
        for name in ("scenes", "questions"):
            if getattr(self, name) < 1:
                raise ReadsegError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Case:
    """One scene of a benchmark: its name, its section of `SECTIONS`, its pixels, and what is asked about it."""

    name: str
    section: str
    picture: Rendered
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Outcome:
    """How one question went: all that the scores need of it.

    Attributes:
        key: of the question; `image` is the scene that it is about.
        image: name of the scene.
        section: of `SECTIONS`.
        kind: kind of question.
        tags: what was held out of training, and other properties of the question.
        present: whether the object is there; None for a question that is answered in words.
        said: whether the answer has a mask that is not empty.
        intersections: pixels, one number for each mask; empty for a question answered in words.
        unions: likewise.
        right_words: the answer's text is the expected one, whatever its case, spaces and stops.
    """

    key: str
    image: str
    section: str
    kind: str
    tags: frozenset[str]
    present: bool | None
    said: bool
    intersections: tuple[int, ...]
    unions: tuple[int, ...]
    right_words: bool


def scene_cases(which: SceneSet) -> Iterator[Case]:
    """Draws the scenes of a set one after the other with their questions: a function of `which`."""
    for number in range(which.first_seed, which.first_seed + which.scenes):
        section = SECTIONS[number % len(SECTIONS)]
        scene = make_scene(number, pairs="held_out" if section == "pairs" else "seen")
        picture = render(scene)
        only_reasoning = section == "descriptions"
        questions = ask(
            scene,
            picture.areas,
            picture.boxes,
            np.random.default_rng([number, 17]),
            count=which.questions,
            phrasing="held_out" if section == "phrasings" else "train",
            descriptions="held_out" if only_reasoning else "train",
            kinds={"reasoning": 1.0} if only_reasoning else None,
            plain=0.0 if only_reasoning else 0.15,
        )
        yield Case(f"scene-{number}", section, picture, tuple(questions))


def evaluate_scenes(
    segmenter: Segments,
    which: SceneSet | None = None,
    *,
    prompts: Sequence[Prompt] = ("both",),
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, list[Outcome]]:
    """Asks a model all questions of a set, with each kind of prompt, and scores the blind baselines beside it.

    Args:
        segmenter: the model; all questions of a scene are asked in one call.
        which: the set; the fixed test set where left out.
        prompts: of `PROMPTS`.
        folder: keeps `predictions-<prompt>.jsonl`; what is there already is not computed again.
        settings: of the model, kept with the predictions: a folder made with others is refused.
        progress: show a bar.

    Returns:
        For each prompt and each name of `BLIND`, the outcomes in the order of the set.

    Raises:
        ReadsegError: an unknown prompt, or predictions of other settings in `folder`.
    """
    which = which or SceneSet()
    for prompt in prompts:
        if prompt not in PROMPTS:
            raise ReadsegError(f"prompt: expected one of {', '.join(PROMPTS)}, got {prompt!r}")
    outcomes: dict[str, list[Outcome]] = {name: [] for name in (*prompts, *BLIND)}
    with ExitStack() as stack:
        files: dict[str, PredictionFile] = {}
        if folder is not None:
            about = {**(settings or {}), **asdict(which), "protocol": "generated"}
            # The number of scenes only says where to stop: a longer run goes on from a shorter one.
            del about["scenes"]
            for prompt in prompts:
                path = folder / f"predictions-{prompt}.jsonl"
                files[prompt] = stack.enter_context(PredictionFile(path, {**about, "prompt": prompt}))
        cases = scene_cases(which)
        for case in track(cases, "scenes", total=which.scenes, disable=not progress):
            for prompt in prompts:
                predictions = _predict(segmenter, case, prompt, files.get(prompt))
                outcomes[prompt] += [score(case, k, p) for k, p in enumerate(predictions)]
            for name in BLIND:
                outcomes[name] += [score(case, k, blind(case, k, name)) for k in range(len(case.questions))]
    return outcomes


def score(case: Case, k: int, prediction: Prediction) -> Outcome:
    """Compares the prediction for question `k` of a case with the truth.

    Raises:
        ReadsegError: a mask is not of the image's size.
    """
    question = case.questions[k]
    hw = case.picture.masks.shape[1:]
    drawn = [decode_rle(dict(mask)) for mask in prediction.masks]
    for mask in drawn:
        if mask.shape != hw:
            raise ReadsegError(f"{prediction.key}: expected masks of size {hw}, the image's, got {mask.shape}")
    counts: list[tuple[int, int]] = []
    if question.present is False:
        counts = [intersection_and_union(union(drawn, hw), np.zeros(hw, bool))]
    elif question.present:
        truth = [union([case.picture.masks[index] for index in target], hw) for target in question.targets]
        nothing = np.zeros(hw, bool)
        for order in range(max(len(truth), len(drawn))):
            found = drawn[order] if order < len(drawn) else nothing
            counts.append(intersection_and_union(found, truth[order] if order < len(truth) else nothing))
    return Outcome(
        key=prediction.key,
        image=case.name,
        section=case.section,
        kind=question.kind,
        tags=question.tags,
        present=question.present,
        said=any(mask.any() for mask in drawn),
        intersections=tuple(i for i, _ in counts),
        unions=tuple(u for _, u in counts),
        right_words=_words(prediction.answer) == _words(question.answer),
    )


def blind(case: Case, k: int, name: str) -> Prediction:
    """The answer of a baseline of `BLIND` to question `k`: as many objects as were asked for, whatever was asked.

    "largest object" takes those with the most visible pixels, "random object" draws them by lot (the lot is a
    function of the question's key). Neither ever refuses.

    Raises:
        ReadsegError: an unknown name.
    """
    key, masks = f"{case.name}/{k}", case.picture.masks
    areas = masks.sum(axis=(1, 2))
    if name == "largest object":
        order = np.argsort(-areas, kind="stable")
    elif name == "random object":
        seed = [int(case.name.rpartition("-")[2]), k]
        order = np.random.default_rng(seed).permutation(np.flatnonzero(areas))
    else:
        raise ReadsegError(f"baseline: expected one of {', '.join(BLIND)}, got {name!r}")
    wanted = max(1, len(case.questions[k].targets))
    return Prediction(key, "", True, tuple(encode_rle(masks[index]) for index in order[:wanted]))


def _predict(segmenter: Segments, case: Case, prompt: Prompt, file: PredictionFile | None) -> list[Prediction]:
    """A scene's predictions: from the file where they are, else from the model, and then into the file."""
    keys = [f"{case.name}/{k}" for k in range(len(case.questions))]
    if file is not None and all(key in file for key in keys):
        return [file[key] for key in keys]
    queries = [question.question for question in case.questions]
    # asks=False: the questions are whole sentences of the set and go to the model as they stand.
    results = segmenter.segment(case.picture.image, queries, asks=False, prompt=prompt)
    predictions = [
        Prediction(key, result.answer, result.present, tuple(encode_rle(mask) for mask in result.masks))
        for key, result in zip(keys, results, strict=True)
    ]
    for prediction in predictions:
        if file is not None and prediction.key not in file:
            file.add(prediction)
    return predictions


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\[SEG\]", text.lower())
