"""Every question's truth, derived again from nothing but names, tints, areas and boxes."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from readseg.scenes.classes import CLASSES, GROUPS, HELD_OUT_PAIRS, TINTS, TRAINED, WIDE_GROUPS
from readseg.scenes.phrases import EXPRESSIONS, NUMBERS, RELATIONS
from readseg.scenes.question_forms import SEGMENTING, TEXT_ONLY
from readseg.scenes.questions import WEIGHTS, Question, ask, make_sample
from readseg.scenes.render import RenderedScene, Scene, SceneObject

Case = tuple[Scene, np.ndarray, np.ndarray]
ALL_GROUPS = (*GROUPS.values(), *WIDE_GROUPS.values())
PLURAL = {word.name: word.plural for word in (*CLASSES.values(), *ALL_GROUPS)}
SINGULAR = {"clothing": "piece of clothing", "furniture": "piece of furniture"}


def random_case(seed: int) -> Case:
    """A random scene whose objects' boxes may lie anywhere; every third holds classes that are never trained."""
    rng = np.random.default_rng([seed, 1])
    height, width = [(200, 200), (160, 240), (240, 160)][seed % 3]
    groups = rng.choice(list(GROUPS), 3, replace=False)
    names = [n for g in groups for n in GROUPS[g].classes if n in TRAINED or seed % 3 == 0]
    things, boxes, areas = [], [], []
    tinted = bool(seed % 2)
    for _ in range(rng.integers(4, 9)):
        x, y, side = *rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.5)
        name, tint = str(rng.choice(names)), str(rng.choice(TINTS)) if tinted else None
        things.append(SceneObject(name, tint, float(x), float(y), float(side)))
        w, h = side * min(height, width) / width, side * min(height, width) / height
        box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 1)
        boxes.append(box)
        hidden = rng.random() < 0.03
        areas.append(0.0 if hidden else rng.uniform(0.3, 0.9) * (box[2] - box[0]) * (box[3] - box[1]))
    return Scene(seed, height, width, tuple(things), "plain"), np.array(areas), np.array(boxes)


def asked(seeds: range, **options: object) -> Iterator[tuple[Case, Question]]:
    for seed in seeds:
        case = random_case(seed)
        for question in ask(*case, np.random.default_rng(seed), count=8, **options):  # type: ignore[arg-type]
            yield case, question


class World:
    """What a reader sees: the words for things and where these are. Shares no code with the package."""

    def __init__(self, case: Case) -> None:
        self.scene, self.areas, self.boxes = case
        self.names = [thing.name for thing in self.scene.objects]
        self.every = list(range(len(self.names)))

    def called(self, noun: str) -> list[int]:
        """Indices of the things that a noun covers, singular or plural."""
        if noun in ("thing", "things"):
            return self.every
        for group, members in {g.name: g.classes for g in ALL_GROUPS}.items():
            word = SINGULAR.get(group, group)
            if noun in (word, word.replace("piece ", "pieces "), f"{word}s"):
                return [i for i in self.every if self.names[i] in members]
        (name,) = [c.name for c in CLASSES.values() if noun in (c.name, c.plural)]
        return [i for i in self.every if self.names[i] == name or self.names[i].endswith(f" {name}")]

    def centre(self, i: int) -> tuple[float, float]:
        x0, y0, x1, y1 = self.boxes[i]
        return (x0 + x1) / 2, (y0 + y1) / 2

    def offset(self, i: int, j: int) -> tuple[float, float]:
        """From j to i in pixels per shorter side."""
        short = min(self.scene.height, self.scene.width)
        (xi, yi), (xj, yj) = self.centre(i), self.centre(j)
        return (xi - xj) * self.scene.width / short, (yi - yj) * self.scene.height / short


ORDER = {
    **dict.fromkeys(("biggest", "bigger"), ("area", -1)),
    **dict.fromkeys(("smallest", "smaller"), ("area", 1)),
    **dict.fromkeys(("leftmost", "left"), ("x", 1)),
    **dict.fromkeys(("rightmost", "right"), ("x", -1)),
    **dict.fromkeys(("topmost", "upper"), ("y", 1)),
    **dict.fromkeys(("bottommost", "lower"), ("y", -1)),
}
SIDES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1), "next to": None}


def truth(world: World, q: Question) -> list[list[int]]:
    """The targets that the question's subject has, [] for a false premise; asserts the margins."""
    tints = [thing.tint for thing in world.scene.objects]
    if q.kind in ("category", "group"):
        return [world.called(q.subject)] if world.called(q.subject) else []
    if q.kind == "colour":
        tint, noun = q.subject.split(" ", 1)
        members = [i for i in world.called(noun) if tints[i] == tint]
        return [members] if members else []
    if q.kind in ("size", "position"):
        word, noun = q.subject.split(" ", 1)
        members = world.called(noun)
        if not members:
            return []
        what, sign = ORDER[word]
        value = {i: world.areas[i] if what == "area" else world.centre(i)[what == "y"] for i in members}
        best, second = sorted(members, key=lambda i: sign * value[i])[:2]
        clear = max(value[best], value[second]) / min(value[best], value[second]) >= 1.4
        assert clear if what == "area" else abs(value[best] - value[second]) >= 0.08
        assert len(members) == 2 or word.endswith("st")
        return [[best]]
    if q.kind == "relation":
        noun, side, anchor = re.fullmatch(rf"(.+?) ({'|'.join(SIDES)}) the (.+)", q.subject).groups()  # type: ignore[union-attr]
        anchors = world.called(anchor)
        if not anchors:
            return []
        (at,) = anchors
        members = [i for i in world.called(noun) if i != at]
        offsets = {i: world.offset(i, at) for i in world.every if i != at}
        distance = {i: math.hypot(*offsets[i]) for i in offsets}
        if SIDES[side] is None:
            best, second = [*sorted(offsets, key=distance.__getitem__), None][:2]
            assert best in members
            assert second is None or distance[second] >= 1.3 * distance[best]
            return [[best]]
        ux, uy = SIDES[side]
        along = {i: offsets[i][0] * ux + offsets[i][1] * uy for i in members}
        if not q.present:
            assert max(along.values()) <= 0.02
            return []
        angles = {i: math.degrees(math.acos(np.clip(along[i] / distance[i], -1, 1))) for i in members}
        near = sorted((i for i in members if angles[i] <= 63.4), key=distance.__getitem__)
        assert angles[near[0]] <= 45 and along[near[0]] >= 0.08
        assert len(near) == 1 or distance[near[1]] >= 1.3 * distance[near[0]]
        return [[near[0]]]
    if q.kind == "all":
        noun = q.subject.removeprefix("all ")
        tint = next((t for t in TINTS if noun.startswith(f"{t} ")), None)
        members = [i for i in world.called(noun.removeprefix(f"{tint} ")) if tint is None or tints[i] == tint]
        return [members] if members else []
    if q.kind == "reasoning":
        (name,) = [c.name for c in CLASSES.values() if q.subject in described(c.name)]
        return [world.called(name)] if world.called(name) else []
    first, second = q.subject.split(" and the ")
    both = [world.called(first), world.called(second)]
    return both if all(both) else []


def described(name: str) -> set[str]:
    c = CLASSES[name]
    return {d.removeprefix("the ") for d in (*c.descriptions, *c.held_out_descriptions)}


@pytest.mark.parametrize("source", ["train", "held_out"])
def test_what_is_segmented_is_what_was_asked_for(source: str) -> None:
    seen: Counter[tuple[str, bool | None]] = Counter()
    for case, q in asked(range(300), phrasing=source, descriptions=source, text_only_rate=0.0):
        world = World(case)
        expected = truth(world, q)
        assert q.present == bool(expected), q
        assert sorted(map(sorted, q.targets)) == sorted(map(sorted, expected)), q
        assert q.answer.count("[SEG]") == len(q.targets)
        if q.kind == "all" and q.present:
            assert len(q.targets[0]) > 1
            assert all(case[1][i] >= 0.003 for i in q.targets[0])
        else:
            assert all(len(t) == 1 and 0.01 <= case[1][t[0]] <= 0.15 for t in q.targets)
        assert len({i for t in q.targets for i in t}) == sum(map(len, q.targets))
        seen[q.kind, q.present] += 1
    for kind, present in itertools.product(SEGMENTING, (True, False)):
        assert seen[kind, present] >= 10, (kind, present, seen)
        # No kind gives presence away.
        assert 0.25 < seen[kind, False] / (seen[kind, True] + seen[kind, False]) < 0.6, (kind, seen)
    assert 0.3 < sum(seen[kind, False] for kind in SEGMENTING) / seen.total() < 0.5


def test_answers_say_what_was_asked_for_and_then_settle_presence() -> None:
    seen: Counter[str] = Counter()
    for case, q in asked(range(250), text_only_rate=0.0):
        world = World(case)
        if q.present:
            assert re.fullmatch(r"the [^.]*\[SEG\]\.", q.answer)
            if q.kind in ("all", "several"):
                continue
            name = world.names[q.targets[0][0]]
            if q.kind == "reasoning":
                assert q.answer == f"the {name} [SEG].", q
            elif q.answer != f"the {q.subject} [SEG].":
                assert q.answer == f"the {q.subject} is the {name} [SEG].", q
                assert not re.search(rf"\b{name}\b", q.subject.split(" to the ")[0].split(" above ")[0]), q
                seen[q.kind] += 1
            continue
        match = re.fullmatch(
            r"the (.+?) (?:is|are) not here(?:, but there is an? (.+?)( elsewhere)?|, nor (?:is|are) the (.+))?\.",
            q.answer,
        )
        assert match, q.answer
        assert match.group(1) == q.subject.removeprefix("all ") or q.kind in ("reasoning", "several"), q
        if match.group(4):
            assert q.kind == "relation" and q.subject.endswith(f"the {match.group(4)}"), q
            assert not world.called(match.group(4)), q
        other = match.group(2)
        if other:
            tint = next((t for t in TINTS if other.startswith(f"{t} ")), None)
            (name,) = [c.name for c in CLASSES.values() if c.counted == other.removeprefix(f"{tint} ")]
            assert any(t.name == name and tint in (None, t.tint) for t in world.scene.objects), q
        elif q.kind in ("category", "reasoning"):
            name = next(c for c in CLASSES.values() if c.name == q.subject or q.subject in described(c.name))
            there = [i for i in world.every if CLASSES[world.names[i]].group == name.group and case[1][i] >= 0.003]
            assert not there, "a similar object should have been named"
    assert min(seen[kind] for kind in ("group", "colour", "size", "position", "relation")) > 10


def test_answers_in_words() -> None:
    seen: Counter[str] = Counter()
    for case, q in asked(range(250), text_only_rate=1.0):
        world, things = World(case), case[0].objects
        assert q.present is None and q.targets == () and "[SEG]" not in q.answer
        seen[q.kind] += 1
        if q.kind == "count":
            assert q.answer == f"{NUMBERS[len(world.called(q.subject.removeprefix('all ')))]}."
        elif q.kind == "tint":
            assert q.answer == f"{things[world.called(q.subject)[0]].tint}."
        elif q.kind == "naming":
            (target,) = truth(world, Question("size", "", "", (), True, frozenset(), q.subject))
            assert q.answer.rstrip(".").endswith(CLASSES[world.names[target[0]]].counted)
        elif q.kind == "listing":
            order = sorted(world.every, key=lambda i: world.centre(i)[0])
            named = re.split(r", | and ", q.answer.rstrip("."))
            assert [n.split(" ", 1)[1] for n in named] == [CLASSES[world.names[i]].counted for i in order]
        else:
            names = [c.name for c in CLASSES.values() if q.subject in described(c.name)]
            tint = next((t for t in TINTS if q.subject.startswith(f"{t} ")), None)
            members = world.called(names[0] if names else q.subject.removeprefix(f"{tint} "))
            there = [i for i in members if tint in (None, things[i].tint)]
            assert q.answer.startswith("yes, there is a" if there else "no, the ")
    assert all(seen[kind] >= 5 for kind in TEXT_ONLY), seen


SAID = {
    **dict.fromkeys(("biggest", "bigger"), "big|larg"),
    **dict.fromkeys(("smallest", "smaller"), "small"),
    **dict.fromkeys(("leftmost", "left", "to the left of"), "left"),
    **dict.fromkeys(("rightmost", "right", "to the right of"), "right"),
    **dict.fromkeys(("topmost", "upper"), "top|high|up|above"),
    **dict.fromkeys(("bottommost", "lower"), "bottom|low|down|below"),
    "above": "above|over|higher",
    "below": "below|under|lower",
    "next to": "next to|nearest|closest|beside",
}


@pytest.mark.parametrize("source", ["train", "held_out"])
def test_the_wording_says_what_the_subject_is(source: str) -> None:
    for _, q in asked(range(200), phrasing=source, text_only_rate=0.0):
        text = q.question.lower()
        if q.kind in ("category", "colour", "group"):
            assert all(word in text for word in q.subject.replace("thing", "").split()), q
        elif q.kind in ("size", "position"):
            word, noun = q.subject.split(" ", 1)
            assert re.search(rf"\b\w*({SAID[word]})", text), q
            assert noun == "thing" or noun in text or PLURAL[noun.removeprefix("piece of ")] in text, q
        elif q.kind == "relation":
            side = next(side for side in SIDES if f" {side} the " in q.subject)
            noun, anchor = q.subject.split(f" {side} the ")
            assert text.index(noun) < text.index(f"the {anchor}") if noun != "thing" else f"the {anchor}" in text, q
            others = {word for key, word in SAID.items() if key in SIDES and key != side}
            assert re.search(SAID[side], text) and not re.search(rf"\b({'|'.join(others)})\b", text), q
        elif q.kind == "reasoning":
            assert q.subject in text, q
        elif q.kind == "several":
            first, second = q.subject.split(" and the ")
            assert text.index(f"the {first}") < text.rindex(f"the {second}"), q


@pytest.mark.parametrize("source", ["train", "held_out"])
def test_descriptions_never_name_the_object_and_are_held_out_only_where_wanted(source: str) -> None:
    for _, q in asked(range(150), kinds={"reasoning": 1.0}, text_only_rate=0.0, descriptions=source):
        c = next(c for c in CLASSES.values() if q.subject in described(c.name))
        assert not re.search(rf"\b({c.name}|{c.plural})\b", q.question.lower()), q
        assert re.search(rf"\b{c.name}\b", q.answer), q
        held_out = q.subject in {d.removeprefix("the ") for d in c.held_out_descriptions}
        assert held_out == (source == "held_out") == ("description" in q.tags)


def test_tags() -> None:
    seen: Counter[str] = Counter()
    for case, q in asked(range(200), phrasing="held_out", text_only_rate=0.0):
        names, targets = [t.name for t in case[0].objects], {i for t in q.targets for i in t}
        assert "phrasing" in q.tags
        if q.present:
            groups = {CLASSES[names[i]].group for i in targets}
            others = {CLASSES[n].group for i, n in enumerate(names) if i not in targets}
            assert ("distractor" in q.tags) == bool(groups & others)
            assert ("untrained" in q.tags) == any(not CLASSES[names[i]].trained for i in targets)
            if any(frozenset((names[i], n)) in HELD_OUT_PAIRS for i in targets for n in names):
                assert "pair" in q.tags
        elif q.kind == "category":
            assert ("distractor" in q.tags) == (CLASSES[q.subject].group in {CLASSES[n].group for n in names})
        if not any(frozenset(pair) in HELD_OUT_PAIRS for pair in itertools.combinations(names, 2)):
            assert "pair" not in q.tags
        seen.update(q.tags)
        seen["all"] += 1
    assert seen["distractor"] / seen["all"] >= 0.5
    assert seen["pair"] and seen["untrained"]


def test_never_trained_classes_are_not_asked_for_in_scenes_of_trained_ones() -> None:
    untrained = "|".join(word for c in CLASSES.values() if not c.trained for word in (c.name, c.plural))
    for _, q in asked(range(1, 200, 3)):
        assert not re.search(rf"\b({untrained})\b", f"{q.question} {q.answer}".lower()), q


def test_questions_are_a_function_of_the_generator_and_differ_within_a_scene() -> None:
    for seed in range(40):
        case = random_case(seed)
        first, second = (ask(*case, np.random.default_rng(seed), count=10) for _ in range(2))
        assert first == second
        assert len({(q.kind, q.subject) for q in first}) == len(first) == 10
        assert ask(*case, np.random.default_rng(seed + 1), count=10) != first


def test_vocabulary_is_modest() -> None:
    words: set[str] = set()
    for source in ("train", "held_out"):
        for _, q in asked(range(1, 900, 3), phrasing=source):
            words |= set(re.findall(r"[a-z]+", f"{q.question} {q.answer}".lower()))
    assert len(words) < 700


def test_weights_and_hostile_input() -> None:
    case = random_case(1)
    kinds = {q.kind for q in ask(*case, np.random.default_rng(0), count=20, kinds={"colour": 1.0, "count": 1.0})}
    assert kinds == {"colour", "count"}
    assert ask(*random_case(2), np.random.default_rng(0), count=5, kinds={"colour": 1.0}) == []  # no tints there
    with pytest.raises(AssertionError, match="kinds of question are"):
        ask(*case, np.random.default_rng(0), count=1, kinds={"color": 1.0})
    empty = Scene(0, 10, 10, (), "plain")
    assert all(not q.targets for q in ask(empty, np.zeros(0), np.zeros((0, 4)), np.random.default_rng(0), count=4))
    hidden = np.zeros_like(case[1])
    assert all(not q.targets for q in ask(case[0], hidden, case[2], np.random.default_rng(0), count=8))
    assert set(WEIGHTS) == {*SEGMENTING, *TEXT_ONLY}


def test_make_sample_unites_the_things_of_a_target() -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[range(3), range(0, 6, 2)] = True
    rendered = RenderedScene(np.zeros((8, 8, 3), np.uint8), masks, masks.mean((1, 2)), np.zeros((3, 4)))
    questions = [
        Question("all", "all cows", "they are the cows [SEG].", ((0, 2),), True, frozenset(), "all cows"),
        Question("category", "the dog", "no, there is no dog here.", (), False, frozenset(), "dog"),
    ]
    sample = make_sample("a", rendered, questions)
    assert (sample.turns[0].masks[0] == (masks[0] | masks[2])).all()
    assert sample.turns[1].masks == () and sample.turns[1].present is False


def test_extra_templates_change_words_alone() -> None:
    plain_words, wide = ([q for _, q in asked(range(40), extra_template_rate=share)] for share in (0.0, 1.0))
    for question in wide:
        assert question.present is not None or question.kind in TEXT_ONLY
        assert question.answer.count("[SEG]") == len(question.targets)
    texts = {q.question.lower().rstrip(".?") for q in plain_words}
    new = [q.question.lower().rstrip(".?") not in texts for q in wide if q.kind in SEGMENTING]
    assert sum(new) > 0.7 * len(new)
    assert [q for _, q in asked(range(5), extra_template_rate=0.0)] == [q for _, q in asked(range(5))]


def test_questions_with_unknown_nouns_are_false_and_the_answer_repeats_the_word() -> None:
    texts = [text for c in CLASSES.values() for text in (c.name, c.plural, *c.descriptions, *c.held_out_descriptions)]
    texts += [f"{g.singular} {g.plural}" for g in ALL_GROUPS]
    texts += [bank.short[0] for bank in (*EXPRESSIONS.values(), *RELATIONS.values())] + [*TINTS, "thing things"]
    known = set(re.findall("[a-z]+", " ".join(texts)))
    unknown, absent = 0, Counter[str]()
    for case, q in asked(range(150), unknown_noun_rate=0.5, text_only_rate=0.0):
        world, words = World(case), re.findall("[a-z]+", q.subject)
        if not set(words) - known:
            if not q.present and q.kind in ("colour", "relation") and "here, nor" not in q.answer:
                noun = q.subject.split(" to the ")[0].split(" above ")[0].split(" below ")[0].split(" next to ")[0]
                noun = noun.split(" ", 1)[1] if q.kind == "colour" else noun
                absent[q.kind] += noun in CLASSES and not world.called(noun)
            continue
        unknown += 1
        assert not q.present and q.targets == ()
        assert all(word in q.answer for word in set(words) - known), q
        assert " but there is " not in q.answer or q.kind == "several", q
    assert unknown > 60 and min(absent["colour"], absent["relation"]) > 5
    assert not any(set(re.findall("[a-z]+", q.subject)) - known for _, q in asked(range(40), text_only_rate=0.0))
