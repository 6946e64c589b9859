"""The loop over a benchmark: models are asked and scored (`evaluate`), studies measure (`run_study`).

Whoever goes on reads what is on disk, and asks only what is missing:

    FOLDER/predictions-rank0.jsonl, ...    of each process, which takes every `world`-th image, while models are asked
    FOLDER/predictions.jsonl               in their place when all is answered, in the benchmark's order
    FOLDER/records.jsonl                   what a study measured, a line for each image

All questions about an image are asked in one call, also those that are known if one of them is not: an answer then does
not depend on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import numpy as np
from accelerate.utils import gather_object
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import track

from readseg.core.images import load_image
from readseg.core.io import JsonlStore, LineFormat, parse, read_lines, write_lines
from readseg.core.masks import IGNORED, encode_rle, union
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import Benchmark, ImageQuestions, Question, chosen
from readseg.evaluation.predictions import PREDICTIONS, Outcome, Prediction, Result, result_of
from readseg.inference.result import Segmentation
from readseg.model.config import Prompt

MERGED, PARTS, RECORDS = "predictions.jsonl", "predictions-rank*.jsonl", "records.jsonl"
VARIANTS: tuple[Prompt, ...] = ("both", "points", "seg")
"""What prompts the mask decoder: points and [SEG] (the method), points only, [SEG] only."""

R = TypeVar("R")


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
    """Something that answers questions: a model with its settings, or a baseline.

    name: of its results; also of its folder, but for the first system of a run.
    settings: what its answers depend on; JSON values.
    answer: all questions about an image, in their order.
    """

    name: str
    settings: Mapping[str, Any]
    answer: Callable[[ImageQuestions, Image.Image], Sequence[Answer]]


def run(
    benchmark: Benchmark,
    asks: Sequence[Callable[[ImageQuestions], None]],
    *,
    title: str | None = None,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> None:
    """Hands every image of a benchmark, or of this process's share, to each `ask`, which keeps what it finds out."""
    console = Console(stderr=True)
    quiet = not progress or rank > 0 or not console.is_terminal
    numbers = chosen(benchmark, limit)[rank::world]
    with warnings.catch_warnings():
        show, shown, image = warnings.showwarning, rank > 0, ""

        def show_hidden_parts_once(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            nonlocal shown
            if str(message).startswith("the model sees only the centre"):  # as `Segmenter` warns, of each image
                if shown:
                    return
                shown = True
                message = f"{image}: {message} (other images of {benchmark.name} may be as wide: this is said once)"
            show(message, category, *where, **more)

        warnings.showwarning = show_hidden_parts_once
        for number in track(numbers, title or benchmark.name, console=console, disable=quiet, transient=True):
            questions = benchmark[number]
            image = questions.image_id
            for ask in asks:
                ask(questions)


def _header(benchmark: Benchmark, settings: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """What decides the answers to a benchmark, and what else is known of them."""
    numbers = chosen(benchmark, limit)
    about = {**benchmark.about, "images": len(numbers), "of": len(benchmark)}
    identity = {"benchmark": benchmark.name, "protocol": benchmark.protocol, "match": benchmark.match}
    return {"settings": {**settings, **identity, **benchmark.settings}, "about": about}


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
    """A model's outcomes on a benchmark; the same in every process, equal to those of one process alone.

    Args:
        segmenter: the model, or whatever has `Segmenter.segment`.
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
    if prompt is not None and prompt not in get_args(Prompt):
        raise ReadsegError(f"prompt: expected one of {', '.join(get_args(Prompt))}, got {prompt!r}")

    def answer(questions: ImageQuestions, image: Image.Image) -> list[Answer]:
        """Names of things are asked in one call, sentences in another."""
        answers: dict[int, Answer] = {}
        for sentence in dict.fromkeys(question.sentence for question in questions.questions):
            group = [k for k, question in enumerate(questions.questions) if question.sentence is sentence]
            # What is neither name nor sentence goes to the model as it stands, and need not ask for an object.
            worded = sentence is not None
            replies = segmenter.segment(
                image,
                [questions.questions[k].text for k in group],
                asks=worded,
                prompt=prompt,
                points=points,
                force=benchmark.protocol == "forced" and worded,
                sentence=sentence,
            )
            answers.update(zip(group, replies, strict=True))
        return [answers[k] for k in range(len(questions.questions))]

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
    with ExitStack() as stack:
        stores = []
        for system in systems:
            header = _header(benchmark, system.settings, limit)
            if benchmark.left_out:
                header["about"]["left_out"] = sum(benchmark.left_out[number] for number in numbers)
            path = folder
            if folder is not None and system is not systems[0]:
                path = folder.with_name(f"{folder.name}_{system.name.replace(' ', '-')}")
            stores.append(PredictionStore(system, header, path, rank, [benchmark.names[number] for number in numbers]))
            stack.callback(stores[-1].close)
        asks = [store.answer_missing for store in stores]
        run(benchmark, asks, limit=limit, rank=rank, world=world, progress=progress)
    return {store.system.name: store.finish(world) for store in stores}


class PredictionStore:
    """The predictions of one system: what is on disk, what this process adds, and the file that it adds them to."""

    def __init__(
        self, system: System, header: Mapping[str, Any], folder: Path | None, rank: int, names: Sequence[str]
    ) -> None:
        self.system = system
        self._header, self._folder, self._rank, self._names = header, folder, rank, names
        self._known: dict[str, Prediction] = {}
        self._own: dict[str, list[Prediction]] = {}
        self._file: JsonlStore[Prediction] | None = None
        if folder is not None:
            for path in (folder / MERGED, *sorted(folder.glob(PARTS))):
                if path.exists():
                    self._known = {**read_lines(path, PREDICTIONS, header).records, **self._known}
        surplus = {key.rpartition("/")[0] for key in self._known} - set(names)
        if surplus:  # they would be lost when files are merged
            raise ReadsegError(
                f"{folder}: there are answers to {len(surplus)} images more than are asked for now; ask for as many as "
                "before, or give another folder"
            )

    def close(self) -> None:
        """Closes the file of this process."""
        if self._file is not None:
            self._file.close()

    def answer_missing(self, questions: ImageQuestions) -> None:
        """Sees to it that every question about an image has its prediction."""
        if any(question.key not in self._known for question in questions.questions):
            for prediction in _predict(questions, self.system):
                if prediction.key not in self._known:
                    self._add(prediction)
        self._own[questions.name] = [self._stored(questions, question) for question in questions.questions]

    def finish(self, world: int) -> Result:
        """All processes' predictions, scored; the first process puts them in one file."""
        own = list(self._own.items())
        by_image = dict(gather_object(own) if world > 1 else own)
        lost = [name for name in self._names if name not in by_image]
        if lost:
            raise ReadsegError(
                f"answers to {len(lost)} images are missing: all {world} processes must evaluate together"
            )
        predictions = [prediction for name in self._names for prediction in by_image[name]]
        result = result_of(self._header["settings"], self._header["about"], predictions)
        if self._folder is not None and self._rank == 0:
            write_lines(self._folder / MERGED, PREDICTIONS, self._header, predictions)
            for path in self._folder.glob(PARTS):
                path.unlink()
        return result

    def _stored(self, questions: ImageQuestions, question: Question) -> Prediction:
        known = self._known[question.key]
        before = (known.question, known.present, known.image, known.kind, known.tags, known.expected)
        now = (question.text, question.present, questions.image_id, question.kind, question.tags, question.expected)
        if before != now:
            raise ReadsegError(
                f"{self._folder}: the answer to {known.key!r} is to {known.question!r:.60} about {known.image}; the "
                f"data now ask {question.text!r:.60} about {questions.image_id}, or as another kind: the data have "
                "changed; give another folder"
            )
        return known

    def _add(self, prediction: Prediction) -> None:
        if self._file is None:  # nothing is written where nothing is missing
            path = None if self._folder is None else self._folder / PARTS.replace("*", str(self._rank))
            self._file = JsonlStore(path, PREDICTIONS, self._header)
        self._file.add(prediction)
        self._known[prediction.key] = prediction


def _predict(questions: ImageQuestions, system: System) -> list[Prediction]:
    """What a system says to all questions about an image; what cannot be read is known before it is asked."""
    image = load_image(questions.image)
    open_predictions = [unanswered(questions, question, image) for question in questions.questions]
    try:
        answers = system.answer(questions, image)
    except ReadsegError as error:
        source = questions.image if isinstance(questions.image, Path) else questions.name
        raise ReadsegError(f"{source}: {error}") from error
    return [answered(*pair) for pair in zip(open_predictions, answers, strict=True)]


def unanswered(questions: ImageQuestions, question: Question, image: Image.Image) -> Prediction:
    """A question about an image with its truth, and without an answer yet."""
    hw = (image.height, image.width)
    targets = [np.asarray(target) for target in question.targets()]
    for target in targets:
        if target.shape != hw:
            raise ReadsegError(
                f"{questions.image}: the image is {hw[0]} x {hw[1]}, a mask of it {' x '.join(map(str, target.shape))} "
                "(height x width)"
            )
    ignored = union([target == IGNORED for target in targets], hw)
    return Prediction(
        key=question.key,
        image=questions.image_id,
        size=hw,
        question=question.text,
        present=question.present,
        targets=tuple(encode_rle(target == 1) for target in targets),
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


# -- studies -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MeasuredImage:
    """A line of a study: the records of an image.

    page: the name of the image within its benchmark.
    asked: digest of its questions: where the data have changed, records are not passed off as measured on them.
    sum: digest of the records: a number that was damaged on the disk is not passed off as measured.
    """

    page: str
    asked: str | None = None
    sum: str | None = None
    records: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if self.sum not in (None, _digest(self.records)):
            raise ValueError(
                f"the records of the page {self.page!r:.80} are not what was measured; without this line it is redone"
            )


MEASURED = LineFormat("readseg-analysis-1", MeasuredImage, key="page")


@dataclass(frozen=True)
class StudyResult(Generic[R]):
    """What a study measured: its header, and the records of each image by its name, in the benchmark's order."""

    name: str
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    images: Mapping[str, Sequence[R]]

    @property
    def records(self) -> list[R]:
        """Of all images, in the benchmark's order."""
        return [record for records in self.images.values() for record in records]


def run_study(
    benchmark: Benchmark,
    measure: Callable[[ImageQuestions], Sequence[R]],
    record: type[R],
    *,
    name: str,
    settings: Mapping[str, Any],
    folder: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> StudyResult[R]:
    """Measures every image of a benchmark once, and keeps the records in `folder`, in memory only where left out.

    `record` is their type: what pydantic writes as JSON and reads again. `settings`, JSON values, are what they depend
    on beside the benchmark.
    """
    adapter = TypeAdapter(list[record])  # type: ignore[valid-type]
    header = {"study": name, **_header(benchmark, settings, limit)}
    path = None if folder is None else folder / RECORDS
    images: dict[str, list[R]] = {}
    with JsonlStore(path, MEASURED, header) as store:

        def measure_missing(questions: ImageQuestions) -> None:
            asked = _asked(questions)
            if questions.name not in store.records:
                records = adapter.dump_python(list(measure(questions)), mode="json")
                store.add(MeasuredImage(page=questions.name, asked=asked, sum=_digest(records), records=records))
            known = store.records[questions.name]
            if known.asked not in (None, asked):
                raise ReadsegError(
                    f"{path}: what was measured on {questions.image_id} is about other questions than the data now "
                    "ask: the data have changed; give another folder"
                )
            # As they come back from disk: a resumed study is the same study.
            values = json.dumps(known.records).encode()
            images[questions.name] = parse(adapter, values, f"{path}, the records of {questions.name}")

        run(benchmark, [measure_missing], title=f"{benchmark.name}: {name}", limit=limit, progress=progress)
    return StudyResult(name, json.loads(json.dumps(header["settings"])), header["about"], images)


def read_study(path: Path) -> StudyResult[dict[str, Any]]:
    """What a file of records holds, as JSON values; a half last line is left out."""
    lines = read_lines(path, MEASURED)
    images = {name: image.records for name, image in lines.records.items()}
    return StudyResult(lines.header["study"], lines.header["settings"], lines.header["about"], images)


def _asked(questions: ImageQuestions) -> str:
    """A digest of the questions about an image and of what is known of each before its masks are read."""
    asked = [(q.key, q.text, q.sentence, q.present, q.expected, q.kind, sorted(q.tags)) for q in questions.questions]
    return _digest([questions.image_id, asked])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()[:16]
