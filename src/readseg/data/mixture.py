"""The training mixture: six kinds of data at a given ratio, as one endless sequence of numbered draws.

A draw is a pure function of the files, the arguments and its number. So ranks and workers share a run by sharing its
numbers, a run goes on in the middle of an epoch by going on counting, and there is no state to save. Frame: masks have
the image's own height and width, in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from zlib import crc32

import numpy as np

from readseg.core.images import load_image
from readseg.core.types import Turn
from readseg.data.registry import DATA_SETS, require_folder
from readseg.data.templates import dialogue_turns, make_turn
from readseg.data.types import Entry, Expression, Reader, Sample
from readseg.errors import ReadsegError

KINDS = ("sem_seg", "refer_seg", "correct_refer_seg", "vqa", "neg_refer_seg", "reason_seg")
"""Kinds of data, in the order of a ratio."""
DENIED, CORRECTED = 0.07, 0.08
"""Shares of questions for a class that is not there, where a data set knows that: answered so, or with one that is."""
FALSE_REASONS = 0.15  # share of false premises among the questions of a file of ReasonSeg that has some
MOST_IN_A_ROW = 50  # records of a data set that are passed over, one after the other, before that is an error
MAX_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class MixtureSource:
    """What a mixture is made of: images or conversations (`entries`) of a data set, such as "refcoco|unc|train"."""

    kind: str
    weight: int  # of the kind
    data_set: str
    entries: int


@dataclass(frozen=True, slots=True, eq=False)
class MixtureItem:
    """One draw: an image, uint8 (H, W, 3), and what is asked and answered about it."""

    kind: str
    data_set: str  # with its split, such as "refcoco|unc_exclude_unified|train"
    sample: Sample
    dialogue: bool  # whether the turns are rounds of one conversation; else they are separate questions
    skipped: tuple[str, ...] = ()  # what was broken and passed over on the way to this draw, each with its file


class Mixture:
    """Draws from data sets of several kinds, at a ratio.

    Every block of sum(ratio) draws holds exactly ratio[kind] of each kind, in an order of its own. The draws of a kind
    go round its data sets, each once a round; a data set gives each of its entries once before any comes again. A
    broken record is passed over for the next one of its data set, which then comes twice in that pass.

    Args:
        ratio: weight of each of `KINDS`, as `parse_ratio` gives; 0, or no weight, leaves a kind out.
        data_sets: names for some of the kinds, "refcoco", or "refcoco|unc" for the public splits of a referring set.
            They must be there. Other kinds take those of the registry that are there; of each the split for training.
        questions: most questions about an image; conversations are whole.

    Attributes:
        sources: what is drawn from.
        missing: of the data sets that a kind takes by default, which are not there and what belongs where.

    Raises:
        ReadsegError: a data set is unknown or not there, none is there for a kind, or its files cannot be read.
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
        if unknown := [kind for kind in data_sets or {} if kind not in KINDS]:
            raise ReadsegError(f"data_sets: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
        require_folder(root)
        self._seed, self._questions = seed, questions
        self._weights = {kind: ratio[kind] for kind in KINDS if ratio.get(kind)}
        chosen, missing = {}, []
        for kind in self._weights:
            names = (data_sets or {}).get(kind)
            chosen[kind], lacking = _default_names(kind, root) if names is None else (_checked(kind, names, root), [])
            missing += lacking
        opened = {name: _open(name, root) for names in chosen.values() for name in names}
        self._readers = {kind: [opened[name] for name in names] for kind, names in chosen.items()}
        self.missing = tuple(missing)
        self.sources = tuple(
            MixtureSource(kind, weight, reader.name, len(reader))
            for kind, weight in self._weights.items()
            for reader in self._readers[kind]
        )

    def draw(self, number: int) -> MixtureItem:
        """The draw of a number, from 0 on over the whole run; an error where too many records in a row are broken."""
        kind, turns_before = self._kind(number)
        readers = self._readers[kind]
        round_number, place = divmod(turns_before, len(readers))
        rng = np.random.default_rng([self._seed, crc32(kind.encode()), round_number])
        reader = readers[int(rng.permutation(len(readers))[place])]
        broken: list[str] = []
        tried: set[int] = set()
        for further in range(MOST_IN_A_ROW):
            # Each pass over a data set has an order of its own.
            pass_number, place = divmod(round_number + further, len(reader))
            chosen = int(_permutation(self._seed, crc32(reader.name.encode()), pass_number, len(reader))[place])
            if chosen in tried:
                continue
            tried.add(chosen)
            rng = np.random.default_rng([self._seed, number, further])
            try:
                sample = _sample(kind, reader[chosen], self._questions, rng, broken)
            except ReadsegError as error:
                broken.append(str(error))
                continue
            if sample.turns:
                skipped = tuple(dict.fromkeys(f"{reader.name}: {problem}" for problem in broken))
                return MixtureItem(kind, reader.name, sample, kind == "vqa", skipped)
        first = broken[0] if broken else "they ask for nothing that has an outline"
        raise ReadsegError(
            f"{reader.name}: {len(tried)} records in a row cannot be used. The first: {first}. "
            "`readseg data check DIR --thorough` names all."
        )

    def _kind(self, number: int) -> tuple[str, int]:
        """The kind of a draw, and how many draws of that kind come before it."""
        kinds, weights = list(self._weights), list(self._weights.values())
        block, place = divmod(number, sum(weights))
        order = np.random.default_rng([self._seed, block]).permutation(np.repeat(np.arange(len(kinds)), weights))
        chosen = int(order[place])
        return kinds[chosen], block * weights[chosen] + int((order[:place] == chosen).sum())


class BrokenRecords:
    """What was broken and passed over in a run: each message is shown once, and more than `limit` are an error."""

    def __init__(self, show: Callable[[str], object], limit: int = 100) -> None:
        self._show, self._limit, self._lock = show, limit, Lock()
        self._messages: dict[str, None] = {}

    @property
    def count(self) -> int:
        """How many different ones there were."""
        return len(self._messages)

    def add(self, message: str) -> None:
        """Counts and shows one that is new; several threads may."""
        with self._lock:
            if message not in self._messages:
                self._messages[message] = None
                self._show(f"passed over: {message}")
            if self.count > self._limit:
                raise ReadsegError(
                    f"{self.count} records are broken, the limit is {self._limit}. The last: {[*self._messages][-1]}. "
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
    valid = all(re.fullmatch("[0-9]{1,4}", weight) and int(weight) <= MAX_WEIGHT for weight in weights)
    if len(weights) != len(KINDS) or not valid or not any(map(int, weights)):
        raise ReadsegError(
            f"ratio {text!r:.80}: expected {len(KINDS)} whole numbers from 0 to {MAX_WEIGHT}, not all 0, of "
            f'{":".join(KINDS)}, such as "10:1:1:1:1:10"'
        )
    return dict(zip(KINDS, map(int, weights), strict=True))


# -- data sets ---------------------------------------------------------------------------------------------------------


def _default_names(kind: str, root: Path) -> tuple[list[str], list[str]]:
    """Of the usual data sets of a kind, those that are there, and what is missing of the others."""
    missing = {name: data_set.missing(root) for name, data_set in DATA_SETS.items() if data_set.kind == kind}
    names = [name for name, problems in missing.items() if not problems]
    told = [f"{name}: {problem}" for name, problems in missing.items() for problem in problems]
    if not names:
        raise ReadsegError(
            f"{root}: none of the data sets of {kind} is there. {'; '.join(told)}. One of them is enough; or give the "
            "kind the weight 0."
        )
    return names, told


def _checked(kind: str, names: Sequence[str], root: Path) -> list[str]:
    """Names of data sets for a kind, where it takes them and they are there."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ReadsegError(f"data_sets: expected different names for {kind}, or leave it out, got {names!r}")
    fitting = [own.name for own in DATA_SETS.values() if kind in (own.kind, *own.other_kinds)]
    for name in names:
        base, *variant = name.split("|")
        if base not in fitting or len(variant) > DATA_SETS[base].has_variants or variant == [""]:
            raise ReadsegError(f"data_sets: {kind} takes {', '.join(fitting)}, got {name!r}")
        if missing := DATA_SETS[base].missing(root):
            raise ReadsegError(f"data_sets: {name} is to be read for {kind}, but {missing[0]}")
    return list(names)


def _open(name: str, root: Path) -> Reader:
    """A data set's split for training."""
    data_set = DATA_SETS[name.partition("|")[0]]
    split = data_set.training_split
    return data_set.open(root, f"{name}|{split}" if data_set.has_variants else split)


@lru_cache(maxsize=64)
def _permutation(seed: int, key: int, turn_number: int, size: int) -> np.ndarray:
    """An order of the entries of a data set, (size,)."""
    order = np.random.default_rng([seed, key, turn_number]).permutation(size).astype(np.int32)
    order.flags.writeable = False
    return order


# -- samples -----------------------------------------------------------------------------------------------------------


def _sample(kind: str, entry: Entry, questions: int, rng: np.random.Generator, broken: list[str]) -> Sample:
    """An entry asked and answered by up to `questions` turns of different texts, none if nothing can be asked for.

    A turn whose mask is broken gives its place to another; what is wrong is added to `broken`.
    """
    image = np.array(load_image(entry.image))
    turns: list[Turn] = []
    try:
        if kind == "vqa":
            turns += dialogue_turns(entry.dialogue)
    except ReadsegError as error:
        raise ReadsegError(f"{entry.image}: {error}") from error
    true, false, slots = _plan(kind, entry, questions, rng)
    for is_false in slots:
        queue = false if is_false and false else true
        while queue:
            try:
                turns.append(_turn(queue.pop(), entry.image, rng))
                break
            except ReadsegError as error:
                broken.append(str(error))
    return Sample(entry.name, image, tuple(turns))


def _turn(expression: Expression, image: Path, rng: np.random.Generator) -> Turn:
    mask = None if expression.mask is None else expression.mask()  # its errors name files
    try:
        if mask is not None and not (mask == 1).any():
            raise ReadsegError(f"the mask of {expression.text!r:.80} covers nothing")
        return make_turn(expression, mask, rng)
    except ReadsegError as error:
        raise ReadsegError(f"{image}: {error}") from error


def _plan(
    kind: str, entry: Entry, questions: int, rng: np.random.Generator
) -> tuple[list[Expression], list[Expression], list[bool]]:
    """What may be asked for that is there, what is not there, each to be taken from the end; and which comes when."""
    true, false = _distinct(entry.expressions, rng)
    share = FALSE_REASONS
    if kind == "sem_seg":
        share = DENIED + CORRECTED
        absent = [entry.absent[place] for place in rng.permutation(len(entry.absent))[:questions]]
        false = [_false_class(name, true, rng) for name in absent]
    elif kind != "reason_seg":
        # True and false ones in the shares that the files have.
        both = [*true, *false]
        mixed = [both[place] for place in rng.permutation(len(both))]
        return mixed, [], [False] * min(questions, len(mixed))
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


def _false_class(name: str, present: Sequence[Expression], rng: np.random.Generator) -> Expression:
    """A class that is not there; of the answers to it, the share that is due names one that is."""
    corrected = bool(present) and rng.random() < CORRECTED / (DENIED + CORRECTED)
    instead = present[int(rng.integers(len(present)))].text if corrected else ""
    return Expression(name, False, False, instead=instead)
