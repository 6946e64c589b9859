"""Asks a model the questions of a benchmark: by itself or with other processes, going on with what is on disk.

Every process takes each `world`-th image and writes its answers, one line as soon as it is there, to a file of its own:

    FOLDER/predictions-rank0.jsonl, ...    while the benchmark is run
    FOLDER/predictions.jsonl               in its place when all is answered, in the benchmark's order

Whoever goes on reads all of these, whatever number of processes wrote them, and asks only what is missing. All
questions about an image are asked in one call, also those that are known if one of them is not: an answer then does not
depend on where a run was interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from accelerate.utils import gather_object
from PIL import Image
from rich.console import Console
from rich.progress import track

from readseg.core.images import load_image
from readseg.core.masks import IGNORED, encode_rle, union
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, Page, Query, chosen, open_benchmark
from readseg.evaluation.outcomes import Outcome, Result, result_of
from readseg.evaluation.predictions import Asked, Prediction, PredictionFile, read_predictions, write_predictions
from readseg.model.config import Prompt

__all__ = ["Answers", "Benchmark", "Said", "Segments", "System", "evaluate", "model_system", "open_benchmark", "run"]

MERGED, PARTS = "predictions.jsonl", "predictions-rank*.jsonl"
VARIANTS: tuple[Prompt, ...] = ("both", "points", "seg")
"""What prompts the mask decoder: points and [SEG] (the method), points only, [SEG] only."""

_NARROW = "the model sees only the centre"  # how Segmenter's warning of hidden parts begins


class Answers(Protocol):
    """What evaluation asks of a `Segmentation`: its words, its claim, its masks."""

    @property
    def answer(self) -> str:
        """The answer's text."""

    @property
    def present(self) -> bool | None:
        """Whether the object is said to be there; None where no segmentation was asked for."""

    @property
    def masks(self) -> np.ndarray:
        """(S, H, W) bool, one mask for each [SEG] of the answer."""

    @property
    def finished(self) -> bool:
        """False where the answer was cut off."""


class Segments(Protocol):
    """What evaluation asks of a `Segmenter`."""

    def segment(
        self,
        image: Any,
        query: Sequence[str],
        /,
        *,
        asks: bool | None,
        prompt: Prompt | None,
        points: PointConfig | None,
        force: bool,
        sentence: bool | None,
    ) -> Sequence[Answers]:
        """Answers to all queries about one image, as `Segmenter.segment` gives them."""


@dataclass(frozen=True)
class Said:
    """An answer that no `Segmenter` made.

    answer: the text.
    present: whether the object is said to be there.
    masks: (S, H, W) bool.
    finished: False where it was cut off.
    """

    answer: str
    present: bool | None
    masks: np.ndarray
    finished: bool = True


@dataclass(frozen=True)
class System:
    """Something that answers questions: a model with its settings, or a baseline.

    name: of its results; also of its folder, but for the first system of a run.
    settings: what its answers depend on; JSON values.
    answer: all questions of a page about its image, in their order.
    """

    name: str
    settings: Mapping[str, Any]
    answer: Callable[[Page, Image.Image], Sequence[Answers]]


def evaluate(
    segmenter: Segments,
    benchmark: Benchmark,
    *,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    progress: bool = False,
) -> list[Outcome]:
    """A model's outcomes on a benchmark; the same in every process, equal to those of one process alone.

    Args:
        segmenter: the model.
        benchmark: of `benchmarks.open_benchmark` or `scenes.scene_benchmark`.
        folder: keeps the predictions; what is there already is not asked again. Shared by all processes. In memory
            only where left out.
        settings: of the model, JSON values kept with the predictions: a folder made with others is refused.
        prompt: as in `Segmenter.segment`.
        points: as in `Segmenter.segment`.
        rank: of this process, of `world` that were launched together and all call this.
        world: number of processes.
        limit: how many images, see `benchmarks.chosen`; all where left out.
        progress: show a bar, in the first process.

    Returns:
        One outcome for each question, in the benchmark's order: for `report.summarise`.

    Raises:
        ReadsegError: an image or a mask cannot be read, predictions of other settings in `folder`, or an option has no
            such value.
    """
    system = model_system(segmenter, benchmark, settings=settings, prompt=prompt, points=points)
    results = run([system], benchmark, folder=folder, rank=rank, world=world, limit=limit, progress=progress)
    return list(results[system.name].outcomes)


def model_system(
    segmenter: Segments,
    benchmark: Benchmark,
    *,
    settings: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
) -> System:
    """A model as a system that answers under a benchmark's protocol; arguments and errors as `evaluate`.

    It is called after its prompt, "model" where that is the model's own.
    """
    if prompt is not None and prompt not in get_args(Prompt):
        raise ReadsegError(f"prompt: expected one of {', '.join(get_args(Prompt))}, got {prompt!r}")
    given = {"prompt": prompt, "points": None if points is None else asdict(points)}

    def answer(page: Page, image: Image.Image) -> list[Answers]:
        return _answers(segmenter, page, image, benchmark.protocol == "forced", prompt, points)

    return System(prompt or "model", {**(settings or {}), **given}, answer)


def run(
    systems: Sequence[System],
    benchmark: Benchmark,
    *,
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, Result]:
    """Asks several systems, image by image; the results by their names. Arguments and errors as `evaluate`.

    The first system's predictions lie in `folder` itself, another's beside it in a folder that has its name too.
    """
    numbers = chosen(benchmark, limit)
    names = [benchmark.names[number] for number in numbers]
    about = {**benchmark.about, "images": len(numbers), "of": len(benchmark)}
    if benchmark.left_out:
        about["left_out"] = sum(benchmark.left_out[number] for number in numbers)
    identity = {"benchmark": benchmark.name, "protocol": benchmark.protocol, "match": benchmark.match}
    with ExitStack() as stack:
        books = []
        for place, system in enumerate(systems):
            settings = {**system.settings, **identity, **benchmark.settings}
            where = folder if folder is None or place == 0 else _beside(folder, system.name)
            books.append(stack.enter_context(_Book(settings, about, where, rank, names)))
        console = Console(stderr=True)
        quiet = not progress or rank > 0 or not console.is_terminal
        with hidden_parts_told_once(benchmark.name, quiet=rank > 0) as listening:
            for number in track(numbers[rank::world], benchmark.name, console=console, disable=quiet, transient=True):
                page = benchmark[number]
                for system, book in zip(systems, books, strict=True):
                    with listening(page):
                        book.fill(page, system)
    return {system.name: book.finish(world) for system, book in zip(systems, books, strict=True)}


class _Book:
    """The predictions of one system: what is on disk, what this process adds, and the file that it adds them to.

    Args:
        settings: what they depend on.
        about: what else their head says.
        folder: where they are kept; None for memory only.
        rank: of this process.
        names: of the pages that are wanted, in order.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        folder: Path | None,
        rank: int,
        names: Sequence[str],
    ) -> None:
        self._settings, self._about, self._names, self._rank = settings, about, names, rank
        self._folder = folder
        self._known: dict[str, Prediction] = {}
        self._own: dict[str, list[Prediction]] = {}
        self._file: PredictionFile | None = None
        for path in self._files():
            for prediction in read_predictions(path, settings)[1].values():
                self._known.setdefault(prediction.key, prediction)
        self._check_names(set(names))

    def __enter__(self) -> _Book:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def fill(self, page: Page, system: System) -> None:
        """Sees to it that every question of a page has its prediction."""
        missing = [query for query in page.queries if query.key not in self._known]
        if missing:
            for prediction in _predictions(page, system):
                if prediction.key not in self._known:
                    self._add(prediction)
        self._own[page.name] = [self._recalled(page, query) for query in page.queries]

    def finish(self, world: int) -> Result:
        """All processes' predictions, scored; the first process puts them in one file."""
        pages = list(self._own.items())
        if world > 1:
            pages = gather_object(pages)
        found = dict(pages)
        lost = [name for name in self._names if name not in found]
        if lost:
            raise ReadsegError(
                f"answers to {len(lost)} images are missing: all {world} processes must evaluate together"
            )
        predictions = [prediction for name in self._names for prediction in found[name]]
        result = result_of(self._settings, self._about, predictions)
        if self._folder is not None and self._rank == 0:
            write_predictions(self._folder / MERGED, self._settings, self._about, predictions)
            for path in self._folder.glob(PARTS):
                path.unlink()
        return result

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        merged = self._folder / MERGED
        return [*([merged] if merged.exists() else []), *sorted(self._folder.glob(PARTS))]

    def _check_names(self, wanted: Collection[str]) -> None:
        """Answers that nobody wants any more would be lost when files are merged."""
        surplus = {key.rpartition("/")[0] for key in self._known} - set(wanted)
        if surplus:
            raise ReadsegError(
                f"{self._folder}: there are answers to {len(surplus)} images more than are asked for now; ask for as "
                "many as before, or give another folder"
            )

    def _recalled(self, page: Page, query: Query) -> Prediction:
        known = self._known[query.key]
        asked = known.asked
        before = (asked.question, asked.present, asked.image, asked.kind, asked.tags, asked.expected)
        now = (query.text, query.present, page.place, query.kind, query.tags, query.expected)
        if before != now:
            raise ReadsegError(
                f"{self._folder}: the answer to {query.key!r} is to {asked.question!r:.60} about {asked.image}; the "
                f"data now ask {query.text!r:.60} about {page.place}, or as another kind: the data have changed; give "
                "another folder"
            )
        return known

    def _add(self, prediction: Prediction) -> None:
        if self._folder is not None:
            if self._file is None:  # nothing is written where nothing is missing
                path = self._folder / PARTS.replace("*", str(self._rank))
                self._file = PredictionFile(path, self._settings, self._about)
            self._file.add(prediction)
        self._known[prediction.key] = prediction


def _beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}_{name.replace(' ', '-')}")


def asked_of(page: Page, query: Query, image: Image.Image) -> Asked:
    """A question of a page about its image, with the truth as it is kept on disk.

    Raises:
        ReadsegError: a mask cannot be read, or is not of the image's size.
    """
    hw = (image.height, image.width)
    targets = [np.asarray(target) for target in query.targets()]
    for target in targets:
        if target.shape != hw:
            raise ReadsegError(
                f"{page.image}: the image is {hw[0]} x {hw[1]}, a mask of it {' x '.join(map(str, target.shape))} "
                "(height x width)"
            )
    ignored = union([target == IGNORED for target in targets], hw)
    return Asked(
        key=query.key,
        image=page.place,
        size=hw,
        question=query.text,
        present=query.present,
        targets=tuple(encode_rle(target == 1) for target in targets),
        ignored=encode_rle(ignored) if ignored.any() else None,
        expected=query.expected,
        section=page.section,
        kind=query.kind,
        tags=query.tags,
    )


def prediction_of(asked: Asked, said: Answers) -> Prediction:
    """A question with what was answered, as it is kept on disk."""
    return Prediction(asked, said.answer, said.present, tuple(encode_rle(mask) for mask in said.masks), said.finished)


def _predictions(page: Page, system: System) -> list[Prediction]:
    """What a system says to all questions of a page; what cannot be read is known before it is asked."""
    image = load_image(page.image)
    asked = [asked_of(page, query, image) for query in page.queries]
    try:
        answers = system.answer(page, image)
    except ReadsegError as error:
        raise ReadsegError(f"{page.image if isinstance(page.image, Path) else page.name}: {error}") from error
    return [prediction_of(*pair) for pair in zip(asked, answers, strict=True)]


def _answers(
    segmenter: Segments,
    page: Page,
    image: Image.Image,
    forced: bool,
    prompt: Prompt | None,
    points: PointConfig | None,
) -> list[Answers]:
    """A model's answers to all questions of a page: names of things in one call, sentences in another."""
    found: dict[int, Answers] = {}
    for sentence in dict.fromkeys(query.sentence for query in page.queries):
        places = [place for place, query in enumerate(page.queries) if query.sentence is sentence]
        # What is neither name nor sentence goes to the model as it stands, and need not ask for an object.
        worded = sentence is not None
        answers = segmenter.segment(
            image,
            [page.queries[place].text for place in places],
            asks=worded,
            prompt=prompt,
            points=points,
            force=forced and worded,
            sentence=sentence,
        )
        found.update(zip(places, answers, strict=True))
    return [found[place] for place in range(len(page.queries))]


Listening = Callable[[Page], Any]


@contextmanager
def hidden_parts_told_once(name: str, *, quiet: bool = False) -> Iterator[Listening]:
    """Of the warnings that a part of an image is hidden from the model the first is told, for all of a benchmark."""
    hidden = False

    @contextmanager
    def listening(page: Page) -> Iterator[None]:
        nonlocal hidden
        with warnings.catch_warnings(record=True) as heard:
            yield
        for one in heard:
            told = str(one.message)
            if told.startswith(_NARROW):
                if hidden:  # an image may be looked at more than once before the filter knows of it
                    continue
                hidden = True
                warnings.filterwarnings("ignore", message=_NARROW)
                told = f"{page.place}: {told} (other images of {name} may be as wide: this is said once)"
            warnings.warn(told, one.category, stacklevel=1)

    with warnings.catch_warnings():
        if quiet:
            warnings.filterwarnings("ignore", message=_NARROW)
        yield listening
