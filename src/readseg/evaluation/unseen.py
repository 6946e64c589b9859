"""What a model says of things that it never saw: a fixed benchmark on which the right answer is always a refusal.

    "untrained"  200 scenes of things of the 30 classes that models are never trained on. What is asked for IS in the
                 picture, but the model cannot know it: to claim it is to guess, so it should refuse. (The palm tree is
                 one of them, and a model that claims it as a tree is held to be wrong like any other.)
    "empty"      50 backgrounds without a thing: whatever is asked for, nothing is there.

Every question counts as a false premise and has no target; masks are not scored.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from readseg.evaluation.benchmarks import UNSEEN, UNTRAINED, Benchmark, ImageQuestions, Question
from readseg.scenes.classes import CLASSES, TINTS, TRAINED, article
from readseg.scenes.facts import TARGET_AREA, is_a
from readseg.scenes.phrases import EXPRESSIONS, RELATIONS, REQUESTS
from readseg.scenes.render import BACKGROUNDS, SIZES_HW, Scene, make_scene, render

FIRST_UNSEEN_SEED = 800_000  # training draws from 1,000,000 on, the test set of scenes from 500,000 on
IMAGES, QUESTIONS = 250, 4  # of the set, and the most about one image
EMPTY = "empty"
EMPTY_EVERY = 5  # every fifth image is an empty background: any first part of the set is mixed as all of it is
EMPTY_KINDS = ("category", "reasoning", "colour", "relation")
"""What an empty background is asked for, once each, of trained classes: by name, description, tint, neighbour."""
_NEVER_TRAINED = frozenset(CLASSES) - set(TRAINED)
_NOT_THERE = frozenset(name for name in TRAINED if not any(is_a(other, name) for other in _NEVER_TRAINED))
_CLASS_OF_WORD = {form: name for name, c in CLASSES.items() for form in (c.plural, c.counted, name)}
# The longest name counts: "a palm tree" is no tree.
_WORDS = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(_CLASS_OF_WORD, key=len, reverse=True)))})\b")


def unseen_benchmark() -> Benchmark:
    """The fixed set as a benchmark."""
    return Benchmark(
        name=UNSEEN,
        protocol="generated",
        match="order",
        names=tuple(f"unseen-{FIRST_UNSEEN_SEED + number}" for number in range(IMAGES)),
        page=unseen_page,
        settings={"first_seed": FIRST_UNSEEN_SEED, "questions": QUESTIONS},
        ordered=True,
    )


@lru_cache(maxsize=1)  # several models look at one image in turn
def unseen_page(number: int) -> ImageQuestions:
    """Draws the image of a number, from 0 on, with its questions."""
    seed = FIRST_UNSEEN_SEED + number
    name, rng = f"unseen-{seed}", np.random.default_rng([seed, 17])
    if number % EMPTY_EVERY == EMPTY_EVERY - 1:
        section, tags = EMPTY, frozenset[str]()
        picture = render(empty_scene(number // EMPTY_EVERY))
        texts = [(kind, _about_nothing(rng, kind)) for kind in EMPTY_KINDS]
    else:
        section, tags = UNTRAINED, frozenset({UNTRAINED})
        scene = make_scene(seed, trained=False)
        picture = render(scene)
        # A thing of which hardly anything shows could be overlooked by whoever knows it.
        seen = {thing.name for thing, area in zip(scene.objects, picture.areas, strict=True) if area >= TARGET_AREA[0]}
        texts = [
            ("category", _request(rng, "category", "name", str(which)))
            for which in rng.permutation(sorted(seen))[:QUESTIONS]
        ]
    questions = tuple(
        Question(f"{name}/{k}", text, sentence=None, present=False, targets=tuple, kind=kind, tags=tags)
        for k, (kind, text) in enumerate(texts)
    )
    return ImageQuestions(name, picture.image, name, section, questions)


def empty_scene(number: int) -> Scene:
    """The background of a number, from 0 on: textures and image sizes come in turn, 30 in a row are all pairs."""
    height, width = SIZES_HW[number % len(SIZES_HW)]
    seed = FIRST_UNSEEN_SEED + EMPTY_EVERY * number + EMPTY_EVERY - 1
    return Scene(seed, height, width, (), BACKGROUNDS[number % len(BACKGROUNDS)])


def _about_nothing(rng: np.random.Generator, kind: str) -> str:
    """Asks in a wording of training for one of the trained classes, drawn by lot; of a kind of `EMPTY_KINDS`."""
    name, other = (str(drawn) for drawn in rng.choice(TRAINED, size=2, replace=False))
    if kind == "category":
        return _request(rng, kind, "name", name)
    if kind == "reasoning":
        return _request(rng, kind, "description", name, d=str(rng.choice(CLASSES[name].descriptions)))
    if kind == "colour":
        return _request(rng, kind, "tint", name, c=str(rng.choice(TINTS)))
    where = RELATIONS[str(rng.choice(sorted(RELATIONS)))].draw(rng, {"o": f"the {other}"})
    return _request(rng, kind, "relation", name, rel=where)


def _request(rng: np.random.Generator, kind: str, way: str, name: str, **words: str) -> str:
    """A request of a kind of `REQUESTS` for what an expression of `EXPRESSIONS` says of a class."""
    thing = CLASSES[name]
    phrase = EXPRESSIONS[way].draw(rng, {"n": thing.name, "ns": thing.plural, **words})
    are = thing.is_plural and way != "description"
    fill = {"x": phrase, "be": "are" if are else "is", "it": "them" if are else "it"}
    if kind == "category":
        fill |= {"bare": thing.name, "a": article(thing.counted)}
    return REQUESTS[kind].draw(rng, fill)


def names_what_was_asked(question: str, answer: str) -> bool:
    """Whether an answer names a class that the question names."""
    return bool(_named(question) & _named(answer))


def names_what_is_not_there(answer: str) -> bool:
    """Whether a refusal says that a thing of a trained class is there; a tree does not count, it may be a palm tree."""
    return any(_named(rest) & _NOT_THERE for rest in re.findall(r"\bbut there (?:is|are)\b(.*)", answer.lower()))


def _named(text: str) -> frozenset[str]:
    """The classes that a text names, by a word for one or several of it."""
    return frozenset(_CLASS_OF_WORD[word] for word in _WORDS.findall(text.lower()))
