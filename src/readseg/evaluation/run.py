"""The loop over a benchmark, and what models say to it.

Whoever goes on reads what is on disk, and asks only what is missing:

    FOLDER/predictions-rank0.jsonl, ...    of each process, which takes every `world`-th image, while models are asked
    FOLDER/predictions.jsonl               in their place when all is answered, in the benchmark's order
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate.utils import gather_object
from PIL import Image
from rich.console import Console
from rich.progress import track

from readseg.core.images import load_image
from readseg.core.io import JsonlStore, read_lines, write_lines
from readseg.core.masks import encode_rle
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question, chosen
from readseg.evaluation.predictions import PREDICTIONS, Outcome, Prediction, Result, result_of
from readseg.inference.result import Segmentation
from readseg.model.config import Prompt

MERGED, PARTS = "predictions.jsonl", "predictions-rank*.jsonl"
VARIANTS: tuple[Prompt, ...] = ("both", "points", "seg")
"""What prompts the mask decoder: points and [SEG] (the method), points only, [SEG] only."""

T = TypeVar("T")


@dataclass(frozen=True)
class FixedAnswer:
    """An answer that no `Segmenter` made: text, whether the object is said to be there, masks (S, H, W) bool."""

    answer: str
    present: bool | None
    masks: np.ndarray
    finished: bool = True


Answer = Segmentation | FixedAnswer


@dataclass(frozen=True)
class System:
    """Something that answers questions: a model with its settings, or a baseline."""

    name: str  # of its results; also of its folder, but for the first system of a run
    settings: Mapping[str, Any]  # what its answers depend on; JSON values
    answer: Callable[[ImageQuestions, Image.Image], Sequence[Answer]]  # all questions about an image, in their order


def ask_all(
    benchmark: Benchmark, numbers: Sequence[int], asks: Sequence[Callable[[ImageQuestions], None]], *,
    title: str, progress: bool = True, rank: int = 0,
) -> None:  # fmt: skip
    """Hands the images of these numbers to each `ask`, one image after the other; a bar shows how far it is."""
    console = Console(stderr=True)
    quiet = not progress or rank > 0 or not console.is_terminal
    with warnings.catch_warnings():
        show, shown, image = warnings.showwarning, rank > 0, ""

        def show_hidden_parts_once(message: Warning | str, *where: Any, **more: Any) -> None:
            """Shows all warnings but those that the centre crop hides a part of one more image."""
            nonlocal shown
            if str(message).startswith("the model sees only the centre"):  # as `Segmenter` warns, of each image
                if shown:
                    return
                shown = True
                message = f"{image}: {message} (other images of {benchmark.name} may be as wide: this is said once)"
            show(message, *where, **more)

        warnings.showwarning = show_hidden_parts_once
        for number in track(numbers, title, console=console, disable=quiet, transient=True):
            questions = benchmark[number]
            image = questions.image_id
            for ask in asks:
                ask(questions)


def header_of(benchmark: Benchmark, settings: Mapping[str, Any], images: int) -> dict[str, Any]:
    """What decides the answers to a benchmark, and what else is known of them."""
    about = {**benchmark.about, "images": images, "of": len(benchmark)}
    identity = {"benchmark": benchmark.name, "protocol": benchmark.protocol, "match": benchmark.match}
    return {"settings": {**settings, **identity, **benchmark.settings}, "about": about}


def ask_together(benchmark: Benchmark, questions: Sequence[Question], ask: Callable[..., Sequence[T]]) -> list[T]:
    """The replies of `ask`, such as `Segmenter.segment` with its image, under a benchmark's protocol, in order.

    Names of things are asked in one call, sentences in another.
    """
    replies: dict[int, T] = {}
    for sentence in dict.fromkeys(question.sentence for question in questions):
        group = [k for k, question in enumerate(questions) if question.sentence is sentence]
        # What is neither name nor sentence goes to the model as it stands, and need not ask for an object.
        worded = sentence is not None
        force = benchmark.protocol == "forced" and worded
        answers = ask([questions[k].text for k in group], asks=worded, force=force, sentence=sentence)
        replies.update(zip(group, answers, strict=True))
    return [replies[k] for k in range(len(questions))]


# -- models ------------------------------------------------------------------------------------------------------------


def evaluate(
    segmenter: Any,
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
    """A model's outcomes on a benchmark, in its order; the same in every process, equal to those of one process alone.

    `segmenter` is a model, or whatever has `Segmenter.segment`, which takes `prompt` and `points`. `folder`, shared by
    all processes, keeps the predictions beside `settings`, JSON values of the model: what is there is not asked again.
    Without it all stays in memory. `rank` is that of this process, of `world` that were launched together and all call
    this. `limit` is the number of images (`benchmarks.chosen`), all for None; `progress` shows a bar.

    Raises:
        ReadsegError: an image or a mask cannot be read, or predictions of other settings in `folder`.
    """
    system = model_system(segmenter, benchmark, settings=settings, prompt=prompt, points=points)
    results = run_systems([system], benchmark, folder=folder, rank=rank, world=world, limit=limit, progress=progress)
    return list(results[system.name].outcomes)


def model_system(
    segmenter: Any,
    benchmark: Benchmark,
    *,
    settings: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    points: PointConfig | None = None,
) -> System:
    """A model as a system, named after its prompt ("model" for its own), that answers under a benchmark's protocol."""

    def answer(questions: ImageQuestions, image: Image.Image) -> list[Answer]:
        segment = partial(segmenter.segment, image, prompt=prompt, points=points)
        return ask_together(benchmark, questions.questions, segment)

    options = {"prompt": prompt, "points": None if points is None else asdict(points)}
    return System(prompt or "model", {**(settings or {}), **options}, answer)


def run_systems(
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
    with ExitStack() as files:
        stores = []
        for system in systems:
            header = header_of(benchmark, system.settings, len(numbers))
            if benchmark.left_out:
                header["about"]["left_out"] = sum(benchmark.left_out[number] for number in numbers)
            path = folder
            if folder is not None and system is not systems[0]:
                path = folder.with_name(f"{folder.name}_{system.name.replace(' ', '-')}")
            stores.append(_PredictionStore(system, header, path, rank, names, files))
        asks = [store.answer_missing for store in stores]
        ask_all(benchmark, numbers[rank::world], asks, title=benchmark.name, progress=progress, rank=rank)
    return {store.system.name: store.finish(world) for store in stores}


@dataclass(eq=False)
class _PredictionStore:
    """The predictions of one system: what is on disk, what this process adds, and the file that it adds them to."""

    system: System
    header: Mapping[str, Any]
    folder: Path | None
    rank: int
    names: Sequence[str]  # of all images that are asked about, in order
    files: ExitStack  # closes the file

    def __post_init__(self) -> None:
        self.known: dict[str, Prediction] = {}
        self.own: dict[str, list[Prediction]] = {}
        self.store: JsonlStore[Prediction] | None = None
        for path in [] if self.folder is None else [self.folder / MERGED, *sorted(self.folder.glob(PARTS))]:
            if path.exists():
                self.known = {**read_lines(path, PREDICTIONS, self.header).records, **self.known}
        surplus = {key.rpartition("/")[0] for key in self.known} - set(self.names)
        if surplus:  # they would be lost when files are merged
            raise ReadsegError(
                f"{self.folder}: there are answers to {len(surplus)} images more than are asked for now; ask for as "
                "many as before, or give another folder"
            )

    def answer_missing(self, questions: ImageQuestions) -> None:
        """Sees to it that every question about an image has its prediction."""
        missing = {question.key for question in questions.questions} - self.known.keys()
        # All are asked in one call, known ones too: no answer depends on where a run was interrupted.
        for prediction in _predict(questions, self.system) if missing else ():
            if prediction.key in missing:
                if self.store is None:  # nothing is written where nothing is missing
                    path = None if self.folder is None else self.folder / PARTS.replace("*", str(self.rank))
                    self.store = self.files.enter_context(JsonlStore(path, PREDICTIONS, self.header))
                self.store.add(prediction)
                self.known[prediction.key] = prediction
        self.own[questions.name] = [self._checked(questions, question) for question in questions.questions]

    def finish(self, world: int) -> Result:
        """All processes' predictions, scored; the first process puts them in one file."""
        own = list(self.own.items())
        by_image = dict(gather_object(own) if world > 1 else own)
        lost = [name for name in self.names if name not in by_image]
        if lost:
            raise ReadsegError(
                f"answers to {len(lost)} images are missing: all {world} processes must evaluate together"
            )
        predictions = [prediction for name in self.names for prediction in by_image[name]]
        result = result_of(self.header["settings"], self.header["about"], predictions)
        if self.folder is not None and self.rank == 0:
            write_lines(self.folder / MERGED, PREDICTIONS, self.header, predictions)
            for path in self.folder.glob(PARTS):
                path.unlink()
        return result

    def _checked(self, questions: ImageQuestions, question: Question) -> Prediction:
        """The prediction of a question, which must be about what the data ask now."""
        known = self.known[question.key]
        before = (known.question, known.present, known.image, known.kind, known.tags, known.expected)
        now = (question.text, question.present, questions.image_id, question.kind, question.tags, question.expected)
        if before != now:
            raise ReadsegError(
                f"{self.folder}: the answer to {known.key!r} is to {known.question!r:.60} about {known.image}; the "
                f"data now ask {question.text!r:.60} about {questions.image_id}, or as another kind: the data have "
                "changed; give another folder"
            )
        return known


def _predict(questions: ImageQuestions, system: System) -> list[Prediction]:
    """What a system says to all questions about an image; what cannot be read is known before it is asked."""
    image = load_image(questions.image)
    open_predictions = [unanswered(questions, question, image) for question in questions.questions]
    try:
        answers = system.answer(questions, image)
    except ReadsegError as error:
        raise ReadsegError(f"{questions.source}: {error}") from error
    return [answered(*pair) for pair in zip(open_predictions, answers, strict=True)]


def unanswered(questions: ImageQuestions, question: Question, image: Image.Image) -> Prediction:
    """A question about an image with its truth, and without an answer yet."""
    hw = (image.height, image.width)
    targets, ignored = questions.read_targets(question, hw)
    return Prediction(
        key=question.key,
        image=questions.image_id,
        size=hw,
        question=question.text,
        present=question.present,
        targets=tuple(map(encode_rle, targets)),
        ignored=encode_rle(ignored) if ignored.any() else None,
        expected=question.expected,
        section=questions.section,
        kind=question.kind,
        tags=question.tags,
        answer="",
        claimed=None,
        masks=(),
        finished=False,
    )


def answered(prediction: Prediction, answer: Answer) -> Prediction:
    """A question with what was answered."""
    masks = tuple(encode_rle(mask) for mask in answer.masks)
    return replace(prediction, answer=answer.answer, claimed=answer.present, masks=masks, finished=answer.finished)
