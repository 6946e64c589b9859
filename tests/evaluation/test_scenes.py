"""The fixed set of scenes: one question at a time, models that know everything or nothing, and resuming."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from readseg.core.images import load_image
from readseg.evaluation import predictions, report
from readseg.evaluation.predictions import Outcome
from readseg.evaluation.run import FixedAnswer, answered, model_system, run_systems, unanswered
from readseg.evaluation.scenes import (
    BLIND,
    Case,
    SceneSet,
    blind_answer,
    blind_systems,
    image_questions,
    scene_benchmark,
    scene_cases,
)
from readseg.scenes.questions import Question
from readseg.scenes.render import RenderedScene
from rule_model import RuleModel

HW = (6, 8)
SMALL = SceneSet(scenes=3, questions=4)
FROZEN = "b4dedb8d0ee4059c"
"""Of what is scored in the first 20 scenes: questions, targets, and answers in words; other answers are not scored."""


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT, BELOW = block(slice(0, 3), slice(0, 2)), block(slice(0, 3), slice(5, 8)), block(slice(4, 6), slice(0, 8))
MASKS = np.stack([LEFT, RIGHT, BELOW])  # 6, 9 and 16 pixels


def question(targets: tuple[tuple[int, ...], ...], present: bool | None, answer: str = "here [SEG].") -> Question:
    return Question("category", "where?", answer, targets, present, frozenset({"a tag"}), subject="cow")


def case(*questions: Question) -> Case:
    picture = RenderedScene(np.zeros((*HW, 3), np.uint8), MASKS, MASKS.mean(axis=(1, 2)), np.zeros((3, 4)))
    return Case("scene-5", "scenes", picture, questions)


def score(case: Case, k: int, answer: FixedAnswer) -> Outcome:
    questions = image_questions(case)
    question = unanswered(questions, questions.questions[k], load_image(questions.image))
    return predictions.score(answered(question, answer), "order")


def outcome(asked: Question, *masks: np.ndarray, answer: str = "") -> Outcome:
    drawn = np.stack(masks) if masks else np.zeros((0, *HW), bool)
    return score(case(asked), 0, FixedAnswer(answer, bool(masks), drawn))


NOTHING = np.zeros(HW, bool)


@pytest.mark.parametrize(
    ("targets", "present", "masks", "intersections", "unions", "said"),
    [
        (((0,),), True, [block(slice(0, 3), slice(0, 4))], (6,), (12,), True),
        (((0, 1),), True, [LEFT], (6,), (15,), True),  # all of a kind is one mask
        (((0,), (1,)), True, [LEFT, RIGHT], (6, 9), (6, 9), True),
        (((0,), (1,)), True, [RIGHT, LEFT], (0, 0), (15, 15), True),
        (((0,), (1,)), True, [LEFT], (6, 0), (6, 9), True),
        (((0,),), True, [LEFT, BELOW], (6, 0), (6, 16), True),
        (((2,),), True, [], (0,), (16,), False),
        (((0,),), True, [NOTHING], (0,), (6,), False),
        ((), False, [], (0,), (0,), False),
        ((), False, [NOTHING], (0,), (0,), False),
        ((), False, [LEFT, BELOW], (0,), (22,), True),
    ],
)
def test_masks_meet_targets_in_order(
    targets: tuple[tuple[int, ...], ...], present: bool, masks: list[np.ndarray],
    intersections: tuple[int, ...], unions: tuple[int, ...], said: bool,
) -> None:  # fmt: skip
    result = outcome(question(targets, present), *masks)
    assert (result.intersections, result.unions, result.said) == (intersections, unions, said)
    assert (result.image, result.kind, result.tags) == ("scene-5", "category", {"a tag"})


def test_words() -> None:
    asked = question((), None, answer="There are three.")
    assert outcome(asked, answer=" there are  three").right_words
    assert not outcome(asked, answer="there are two.").right_words
    assert outcome(asked).unions == ()


def test_blind_baselines() -> None:
    asked = case(question(((0,),), True), question(((0,), (1,)), True), question((), False))
    assert score(asked, 0, blind_answer(asked, 0, "largest object")).unions == (22,)
    assert score(asked, 1, blind_answer(asked, 1, "largest object")).intersections == (0, 9)
    for k in range(3):
        once, again = (blind_answer(asked, k, "random object") for _ in range(2))
        assert np.array_equal(once.masks, again.masks) and score(asked, k, once).said


def evaluate_scenes(model: RuleModel, prompts: Sequence[Any] = (None,)) -> dict[str, Sequence[Outcome]]:
    """The outcomes of a model with each kind of prompt, and of the blind baselines."""
    benchmark = scene_benchmark(SMALL)
    systems = [model_system(model, benchmark, prompt=prompt) for prompt in prompts]
    results = run_systems([*systems, *blind_systems(SMALL)], benchmark)
    return {name: result.outcomes for name, result in results.items()}


def looking_up(rule: Callable[[Case, Question], FixedAnswer]) -> RuleModel:
    """A model that knows the scene and what is true of a question."""

    def answer(image: Image.Image, text: str) -> FixedAnswer:
        asked = next(c for c in scene_cases(SMALL) if np.array_equal(c.picture.image, np.asarray(image)))
        return rule(asked, next(q for q in asked.questions if q.question == text))

    return RuleModel(answer)


def omniscient(asked: Case, about: Question) -> FixedAnswer:
    masks = [asked.picture.masks[list(target)].any(axis=0) for target in about.targets]
    shape = asked.picture.masks.shape[1:]
    return FixedAnswer(about.answer, about.present, np.stack(masks) if masks else np.zeros((0, *shape), bool))


def silent(asked: Case, about: Question) -> FixedAnswer:
    return FixedAnswer("no.", False, asked.picture.masks[:0])


def test_the_set_is_fixed_and_a_prefix_is_a_part() -> None:
    whole, part = list(scene_cases(SMALL)), list(scene_cases(SceneSet(scenes=2, questions=4)))
    for a, b in zip(whole, part, strict=False):
        assert a.name == b.name and a.questions == b.questions
        assert np.array_equal(a.picture.image, b.picture.image)
    assert len({c.name for c in whole}) == 3
    words = [
        (c.section, q.question, q.answer if q.present is None else "", q.targets, q.present)
        for c in scene_cases(SceneSet(scenes=20))
        for q in c.questions
    ]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    assert digest[:16] == FROZEN, "the test set has changed: published scores hold for the old one"
    assert all(c.questions for c in whole)


def test_knowing_everything_is_worth_one_and_saying_nothing_is_worth_nothing() -> None:
    best = report.summarise(evaluate_scenes(looking_up(omniscient))["model"])
    assert best["giou"].value == pytest.approx(1, abs=1e-3) and best["ciou"].value == 1
    for sure in (best["answered"], best["precision_90"]):
        assert sure.value == 1
    worst = report.summarise(evaluate_scenes(looking_up(silent))["model"])
    assert worst["giou"].value == worst["ciou"].value == worst["answered"].value == 0


def test_variants_and_baselines_stand_beside() -> None:
    model = looking_up(omniscient)
    systems = evaluate_scenes(model, ("both", "points", "seg"))
    assert list(systems) == ["both", "points", "seg", *BLIND]
    assert [options["prompt"] for _, options in model.calls] == ["both", "points", "seg"] * 3
    for texts, options in model.calls:  # the questions are asked as they stand
        assert texts in [[q.question for q in c.questions] for c in scene_cases(SMALL)]
        assert (options["asks"], options["sentence"], options["force"]) == (False, None, False)
    keys = [[o.key for o in outcomes] for outcomes in systems.values()]
    assert all(k == keys[0] for k in keys) and len(set(keys[0])) == len(keys[0])
