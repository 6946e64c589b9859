"""The training mixture: six kinds of data at a given ratio, as one endless sequence of numbered draws.

A draw is a pure function of the files, the arguments and its number. So ranks and workers share a run by sharing its
numbers, a run goes on in the middle of an epoch by going on counting, and there is no state to save. Frame: masks have
the image's own height and width, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from zlib import crc32

import numpy as np

from readseg.core.images import load_image
from readseg.core.masks import IGNORED
from readseg.core.types import Turn
from readseg.data.entries import Entry, Expression
from readseg.data.registry import REFERRING, DataSet, Reader
from readseg.data.registry import data_sets as all_data_sets
from readseg.data.templates import dialogue_turns, make_turn
from readseg.data.types import Sample
from readseg.errors import ReadsegError

KINDS = ("sem_seg", "refer_seg", "correct_refer_seg", "vqa", "neg_refer_seg", "reason_seg")
"""Kinds of data, in the order of a ratio."""
DATA_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sem_seg": ("ade20k", "cocostuff", "mapillary", "paco_lvis", "pascal_part"),
        "refer_seg": ("refclef", "refcoco", "refcoco+", "refcocog"),
        "correct_refer_seg": ("fprefcoco", "fprefcoco+", "fprefcocog"),
        "vqa": ("llava_instruct",),
        "neg_refer_seg": ("R-refcoco", "R-refcoco+", "R-refcocog"),
        "reason_seg": ("reasonseg",),
    }
)
"""The data sets of each kind, as `readseg data check` calls them. Of each, the split for training is read, no other."""
DENIED, CORRECTED = 0.07, 0.08
"""Shares of questions for a class that is not there, where a data set knows that: answered so, or with one that is."""
FALSE_REASONS = 0.15
"""Share of false premises among the questions of a file of ReasonSeg that has some."""
MOST_IN_A_ROW = 50
"""Records of a data set that are passed over, one after the other, before that is an error."""
MOST_WEIGHT = 1000

_SPLITS = {
    "ade20k": "training",
    "cocostuff": "train2017",
    "mapillary": "training",
    "paco_lvis": "train",
    "pascal_part": "train",
    "llava_instruct": "llava_instruct_150k",
    "reasonseg": "train",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What a mixture is made of.

    Attributes:
        kind: one of `KINDS`.
        weight: of the kind.
        data_set: with its split, such as "refcoco|unc_exclude_unified|train".
        entries: images or conversations.
    """

    kind: str
    weight: int
    data_set: str
    entries: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One draw.

    Attributes:
        kind: one of `KINDS`.
        data_set: with its split, such as "refcoco|unc_exclude_unified|train".
        sample: an image, uint8 (H, W, 3), and what is asked and answered about it.
        dialogue: whether the turns are rounds of one conversation; else they are separate questions.
        skipped: what was broken and passed over on the way to this draw, each with its file.
    """

    kind: str
    data_set: str
    sample: Sample
    dialogue: bool
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Source:
    """A data set that is drawn from: its entries in an order of their own on every pass."""

    name: str
    reader: Reader
    key: int

    def entry_number(self, seed: int, place: int) -> int:
        size = len(self.reader)
        return int(_permutation(seed, self.key, place // size, size)[place % size])


class Mixture:
    """Draws from data sets of several kinds, at a ratio.

    Every block of sum(ratio) draws holds exactly ratio[kind] of each kind, in an order of its own. The draws of a kind
    go round its data sets, each once a round; a data set gives each of its entries once before any comes again. A
    broken record is passed over for the next one of its data set, which then comes twice in that pass.

    Args:
        root: the folder of all data sets.
        ratio: weight of each of `KINDS`, as `parse_ratio` gives; 0, or no weight, leaves a kind out.
        data_sets: names for some of the kinds, "refcoco", or "refcoco|unc" for the public splits of a referring set.
            They must be there. Other kinds take those of `DATA_SETS` that are there.
        seed: of all that is drawn by lot, at least 0.
        questions: most questions about an image, at least 1; conversations are whole.

    Attributes:
        parts: what is drawn from.
        missing: of the data sets that a kind takes by default, which are not there and what belongs where.

    Raises:
        ReadsegError: an argument is wrong, a data set is not there, none is there for a kind that has a weight, or its
            files cannot be read.
    """

    def __init__(
        self,
        root: Path,
        ratio: Mapping[str, int],
        *,
        data_sets: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        questions: int = 3,
    ) -> None:
        _require_kinds("ratio", ratio)
        _require_kinds("data_sets", data_sets or {})
        if not any(ratio.values()) or not all(_is_weight(weight) for weight in ratio.values()):
            raise ReadsegError(f"ratio: expected whole weights from 0 to {MOST_WEIGHT}, not all 0, got {dict(ratio)}")
        if seed < 0 or questions < 1:
            raise ReadsegError(f"expected a seed of at least 0 and 1 question or more, got {seed} and {questions}")
        if not root.is_dir():
            raise ReadsegError(f"{root}: no such folder; name the one that the data sets lie in.")
        self._seed, self._questions = seed, questions
        self._weights = {kind: ratio[kind] for kind in KINDS if ratio.get(kind)}
        found = {data_set.name: data_set for data_set in all_data_sets(root)}
        chosen, missing = {}, []
        for kind in self._weights:
            named = (data_sets or {}).get(kind)
            chosen[kind], lacking = _chosen(kind, root, found) if named is None else (_named(kind, named, found), [])
            missing += lacking
        opened: dict[str, _Source] = {}
        self._sources = {kind: [_open(name, found, opened) for name in names] for kind, names in chosen.items()}
        self.missing = tuple(missing)
        self.parts = tuple(
            Part(kind, weight, source.name, len(source.reader))
            for kind, weight in self._weights.items()
            for source in self._sources[kind]
        )

    def draw(self, number: int) -> Drawn:
        """The draw of a number, counted from 0 over the whole run; the same one whenever and wherever it is asked for.

        Raises:
            ReadsegError: the number is negative, or so many records in a row are broken that something is wrong.
        """
        if number < 0:
            raise ReadsegError(f"draws are numbered from 0, got {number}")
        kind, turns_before = self._kind(number)
        sources = self._sources[kind]
        round_number, place = divmod(turns_before, len(sources))
        rng = np.random.default_rng([self._seed, crc32(kind.encode()), round_number])
        source = sources[int(rng.permutation(len(sources))[place])]
        broken: list[str] = []
        tried: set[int] = set()
        for further in range(MOST_IN_A_ROW):
            chosen = source.entry_number(self._seed, round_number + further)
            if chosen in tried:
                continue
            tried.add(chosen)
            rng = np.random.default_rng([self._seed, number, further])
            try:
                sample = _sample(kind, source.reader[chosen], self._questions, rng, broken)
            except ReadsegError as error:
                broken.append(str(error))
                continue
            if sample is not None:
                told = tuple(dict.fromkeys(f"{source.name}: {problem}" for problem in broken))
                return Drawn(kind, source.name, sample, kind == "vqa", told)
        first = broken[0] if broken else "they ask for nothing that has an outline"
        raise ReadsegError(
            f"{source.name}: {len(tried)} records in a row cannot be used. The first: {first}. "
            "`readseg data check DIR --thorough` names all."
        )

    def _kind(self, number: int) -> tuple[str, int]:
        """The kind of a draw, and how many draws of that kind come before it."""
        kinds, weights = list(self._weights), list(self._weights.values())
        block, place = divmod(number, sum(weights))
        order = np.random.default_rng([self._seed, block]).permutation(np.repeat(np.arange(len(kinds)), weights))
        chosen = int(order[place])
        return kinds[chosen], block * weights[chosen] + int((order[:place] == chosen).sum())


class Skipped:
    """What was broken and passed over in a run, counted: each message is told once, and too many are an error.

    Args:
        tell: shows a message to people.
        most: more different ones than these are an error.
    """

    def __init__(self, tell: Callable[[str], object], most: int = 100) -> None:
        self._tell, self._most = tell, most
        self._told: dict[str, None] = {}
        self._lock = Lock()

    @property
    def count(self) -> int:
        """How many different ones there were."""
        return len(self._told)

    def add(self, drawn: Drawn) -> None:
        """Counts and tells what is new in a draw; raises as `count_in`."""
        for message in drawn.skipped:
            self.count_in(message)

    def count_in(self, message: str) -> None:
        """Counts and tells one that is new; several threads may.

        Raises:
            ReadsegError: there are more than `most` by now.
        """
        with self._lock:
            if message not in self._told:
                self._told[message] = None
                self._tell(f"passed over: {message}")
            if self.count > self._most:
                last = next(reversed(self._told))
                raise ReadsegError(
                    f"{self.count} records are broken, the limit is {self._most}. The last: {last}. "
                    "`readseg data check DIR --thorough` names all; mend them, or raise the limit."
                )


def parse_ratio(text: str) -> dict[str, int]:
    """The weight of each of `KINDS`.

    Raises:
        ReadsegError: it is not one whole number for each kind, apart by colons, or they are all 0.

    >>> parse_ratio("10:1:1:1:1:10")["reason_seg"]
    10
    """
    weights = text.strip().split(":")
    good = len(weights) == len(KINDS) and all(
        weight.isascii() and weight.isdecimal() and len(weight) <= 4 and int(weight) <= MOST_WEIGHT
        for weight in weights
    )
    if not good or not any(map(int, weights)):
        raise ReadsegError(
            f"ratio {text!r:.80}: expected {len(KINDS)} whole numbers from 0 to {MOST_WEIGHT}, not all 0, of "
            f'{":".join(KINDS)}, such as "10:1:1:1:1:10"'
        )
    return dict(zip(KINDS, map(int, weights), strict=True))


# -- data sets ---------------------------------------------------------------------------------------------------------


def _is_weight(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_WEIGHT


def _require_kinds(argument: str, given: Iterable[str]) -> None:
    if unknown := [kind for kind in given if kind not in KINDS]:
        raise ReadsegError(f"{argument}: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")


def _lacking(data_set: DataSet) -> list[str]:
    return [f"{path} is missing: put {what} there" for path, what in data_set.needs if not path.exists()]


def _chosen(kind: str, root: Path, found: Mapping[str, DataSet]) -> tuple[list[str], list[str]]:
    """Of the usual data sets of a kind, those that are there, and what is missing of the others."""
    lacking = {name: _lacking(found[name]) for name in DATA_SETS[kind]}
    there = [name for name, problems in lacking.items() if not problems]
    told = [f"{name}: {problem}" for name, problems in lacking.items() for problem in problems]
    if not there:
        raise ReadsegError(
            f"{root}: none of the data sets of {kind} is there. {'; '.join(told)}. One of them is enough; or give the "
            "kind the weight 0."
        )
    return there, told


def _named(kind: str, names: Sequence[str], found: Mapping[str, DataSet]) -> list[str]:
    fitting = REFERRING if kind in ("refer_seg", "correct_refer_seg", "neg_refer_seg") else DATA_SETS[kind]
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ReadsegError(f"data_sets: expected different names for {kind}, or leave it out, got {names!r}")
    for name in names:
        base, _, split_by = name.partition("|")
        if base not in fitting or (split_by and base not in REFERRING) or "|" in split_by:
            raise ReadsegError(f"data_sets: {kind} takes {', '.join(fitting)}, got {name!r}")
        if lacking := _lacking(found[base]):
            raise ReadsegError(f"data_sets: {name} is to be read for {kind}, but {lacking[0]}")
    return list(names)


def _open(name: str, found: Mapping[str, DataSet], opened: dict[str, _Source]) -> _Source:
    """A data set's split for training; once, if several kinds take it."""
    if name not in opened:
        base = name.partition("|")[0]
        split = _SPLITS.get(base, f"{name}|train")
        reader = found[base].read(split)
        label = str(getattr(reader, "name", split))
        opened[name] = _Source(label, reader, crc32(label.encode()))
    return opened[name]


@lru_cache(maxsize=64)
def _permutation(seed: int, key: int, turn_number: int, size: int) -> np.ndarray:
    """An order of the entries of a data set, (size,)."""
    order = np.random.default_rng([seed, key, turn_number]).permutation(size).astype(np.int32)
    order.flags.writeable = False
    return order


# -- samples -----------------------------------------------------------------------------------------------------------


def _sample(kind: str, entry: Entry, questions: int, rng: np.random.Generator, broken: list[str]) -> Sample | None:
    """An entry asked and answered; None if nothing in it can be asked for. What is broken in it is added to `broken`.

    Raises:
        ReadsegError: its image, or its conversation, is broken.
    """
    image = np.array(load_image(entry.image))
    if kind == "vqa":
        try:
            return Sample(entry.name, image, dialogue_turns(entry.dialogue))
        except ReadsegError as error:
            raise ReadsegError(f"{entry.image}: {error}") from error
    turns = _turns(kind, entry, image.shape[:2], questions, rng, broken)
    return Sample(entry.name, image, tuple(turns)) if turns else None


def _turns(
    kind: str, entry: Entry, hw: tuple[int, ...], questions: int, rng: np.random.Generator, broken: list[str]
) -> list[Turn]:
    """Up to `questions` turns of different texts; one whose mask is broken gives its place to another."""
    true, false, slots = _plan(kind, entry, questions, rng)
    turns: list[Turn] = []
    for is_false in slots:
        queue = false if is_false and false else true
        made = None
        while queue and made is None:
            expression = queue.pop()
            try:
                made = _turn(expression, entry.image, hw, rng)
            except ReadsegError as error:
                broken.append(str(error))
        turns += [made] if made is not None else []
    return turns


def _turn(expression: Expression, image: Path, hw: tuple[int, ...], rng: np.random.Generator) -> Turn:
    mask = _mask(expression, image, hw)
    try:
        return make_turn(expression, mask, rng)
    except ReadsegError as error:
        raise ReadsegError(f"{image}: {error}") from error


def _mask(expression: Expression, image: Path, hw: tuple[int, ...]) -> np.ndarray | None:
    """The mask of what is there, uint8 (H, W), which fits the image and covers something."""
    if expression.mask is None:
        return None
    mask = expression.mask()
    if mask.shape != hw:
        raise ReadsegError(
            f"{image} is {hw[0]} x {hw[1]} (height x width), the mask of {expression.text!r:.80} is {mask.shape}"
        )
    if mask.dtype != np.uint8 or ((mask > 1) & (mask != IGNORED)).any():
        raise ReadsegError(f"{image}: the mask of {expression.text!r:.80} has values other than 0, 1 and {IGNORED}")
    if not (mask == 1).any():
        raise ReadsegError(f"{image}: the mask of {expression.text!r:.80} covers nothing")
    return mask


def _plan(
    kind: str, entry: Entry, questions: int, rng: np.random.Generator
) -> tuple[list[Expression], list[Expression], list[bool]]:
    """What may be asked for that is there, what is not there, each to be taken from the end; and which comes when."""
    true, false = _distinct(entry.expressions, rng)
    if kind not in ("sem_seg", "reason_seg"):
        # True and false ones in the shares that the files have.
        both = [*true, *false]
        mixed = [both[place] for place in rng.permutation(len(both))]
        return mixed, [], [False] * min(questions, len(mixed))
    if kind == "sem_seg":
        share = DENIED + CORRECTED
        false = [_false_class(name, true, rng) for name in _some(entry.absent, questions, rng)]
    else:
        share = FALSE_REASONS
    slots = [not true or rng.random() < share for _ in range(min(questions, len(true or false)))]
    return true, false, slots


def _distinct(expressions: Sequence[Expression], rng: np.random.Generator) -> tuple[list[Expression], list[Expression]]:
    """In a random order, one expression for each text that is asked for: those that are there, those that are not."""
    true: dict[str, Expression] = {}
    false: dict[str, Expression] = {}
    for place in rng.permutation(len(expressions)):
        expression = expressions[place]
        if "no_target" not in expression.tags:
            (true if expression.present else false).setdefault(expression.text.strip().lower(), expression)
    return list(true.values()), [expression for text, expression in false.items() if text not in true]


def _some(names: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [names[place] for place in rng.permutation(len(names))[:count]]


def _false_class(name: str, there: Sequence[Expression], rng: np.random.Generator) -> Expression:
    """A question for a class that is not there; of the answers to it, the share that is due names one that is."""
    corrected = bool(there) and rng.random() < CORRECTED / (DENIED + CORRECTED)
    instead = there[int(rng.integers(len(there)))].text if corrected else ""
    return Expression(name, False, False, instead=instead)
