"""The fixed set of drawn scenes: what it asks, and blind answers to stand beside a model's. Protocol: generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from readseg.evaluation.benchmarks import FIRST_TEST_SEED, SCENES, Benchmark, ImageQuestions, Question
from readseg.evaluation.run import FixedAnswer, System
from readseg.scenes.questions import Question as SceneQuestion
from readseg.scenes.questions import ask, target_masks
from readseg.scenes.render import RenderedScene, make_scene, render

SECTIONS = ("scenes",) * 6 + ("phrasings",) * 2 + ("descriptions", "pairs")
"""Section of the test scene whose number modulo 10 is the place here. "scenes": all of it is new but words and pairs of
classes are those of training; the others hold out the phrasings, the descriptions (reasoning questions only), or
put two classes together that training never does."""

BLIND = ("largest object", "random object")
"""Baselines that know where the objects are and do not read the question."""


@dataclass(frozen=True)
class SceneSet:
    """Which scenes and questions: by default the fixed test set. Any first part of a set is mixed alike."""

    scenes: int = 600
    questions: int = 6  # about each scene
    first_seed: int = FIRST_TEST_SEED


@dataclass(frozen=True)
class Case:
    """One scene of a set, and what is asked about it."""

    name: str
    section: str  # of `SECTIONS`
    picture: RenderedScene
    questions: tuple[SceneQuestion, ...]


def scene_cases(which: SceneSet) -> Iterator[Case]:
    """Draws the scenes of a set with their questions, one after the other."""
    return (scene_case(number, which) for number in range(which.scenes))


@lru_cache(maxsize=1)  # a model and the blind answers look at one scene in turn
def scene_case(number: int, which: SceneSet) -> Case:
    """Draws the scene of a number, from 0 on, of a set."""
    seed = which.first_seed + number
    section = SECTIONS[seed % len(SECTIONS)]
    scene = make_scene(seed, pairs="held_out" if section == "pairs" else "seen")
    picture = render(scene)
    only_reasoning = section == "descriptions"
    questions = ask(
        scene,
        picture.areas,
        picture.boxes,
        np.random.default_rng([seed, 17]),
        count=which.questions,
        phrasing="held_out" if section == "phrasings" else "train",
        descriptions="held_out" if only_reasoning else "train",
        kinds={"reasoning": 1.0} if only_reasoning else None,
        text_only_rate=0.0 if only_reasoning else 0.15,
    )
    return Case(f"scene-{seed}", section, picture, tuple(questions))


def scene_benchmark(which: SceneSet | None = None) -> Benchmark:
    """A set of scenes as a benchmark; the fixed test set where left out."""
    which = which or SceneSet()
    return Benchmark(
        name=SCENES,
        protocol="generated",
        match="order",
        names=tuple(f"scene-{which.first_seed + number}" for number in range(which.scenes)),
        page=lambda number: image_questions(scene_case(number, which)),
        # The number of scenes only says where to stop: a longer run goes on from a shorter one.
        settings={"questions": which.questions, "first_seed": which.first_seed},
        ordered=True,
    )


def image_questions(case: Case) -> ImageQuestions:
    """A scene as an image of the benchmark with its questions."""
    questions = tuple(
        Question(
            key=f"{case.name}/{k}",
            text=question.question,
            sentence=None,
            present=question.present,
            targets=partial(target_masks, question, case.picture.masks),
            expected=question.answer,
            kind=question.kind,
            tags=question.tags,
        )
        for k, question in enumerate(case.questions)
    )
    return ImageQuestions(case.name, case.picture.image, case.name, case.section, questions)


def blind_systems(which: SceneSet) -> list[System]:
    """The baselines of `BLIND`, answering the questions of a set."""

    def answer(name: str, questions: ImageQuestions, _: Image.Image) -> list[FixedAnswer]:
        case = scene_case(int(questions.name.rpartition("-")[2]) - which.first_seed, which)
        return [blind_answer(case, k, name) for k in range(len(questions.questions))]

    return [System(name, {"model": name}, partial(answer, name)) for name in BLIND]


def blind_answer(case: Case, k: int, name: str) -> FixedAnswer:
    """The answer of a baseline of `BLIND` to question `k`: as many objects as were asked for, whatever was asked.

    "largest object" takes those with the most visible pixels, "random object" draws them by a function of the
    question's key. Neither ever refuses.
    """
    masks = case.picture.masks
    areas = masks.sum(axis=(1, 2))
    if name == "largest object":
        order = np.argsort(-areas, kind="stable")
    else:
        seed = [int(case.name.rpartition("-")[2]), k]
        order = np.random.default_rng(seed).permutation(np.flatnonzero(areas))
    return FixedAnswer("", True, masks[order[: max(1, len(case.questions[k].targets))]])
