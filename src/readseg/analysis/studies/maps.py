"""The tables of section 3.2, made of records: what maps know, what prompts are worth, and whether maps agree.

All rows of a table are over the same expected masks. Where there is no map or no mask - no [SEG] in the answer, no
words, a constant map - an empty mask counts, never nothing at all; notes say how many.

Source: section 3.2, appendices A.1, B and C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import track

from readseg.analysis.cases import cases_of
from readseg.analysis.clip import load_clip
from readseg.analysis.looks import EXTREMES
from readseg.analysis.original_sam import plain_sam
from readseg.analysis.page import PageData, page_case, picked, write_page
from readseg.analysis.studies.examine import MISSED, Means, examine
from readseg.analysis.studies.measures import MAPS, PROMPTS, RECORD, Counts, MapScores, Measured, iou_of
from readseg.analysis.study import Study, StudyContext, StudyModel, StudyOutput
from readseg.checkpoints.load import digest
from readseg.core.images import load_image
from readseg.core.io import atomic_write
from readseg.core.stats import Estimate, estimate, mask_ious
from readseg.errors import ReadsegError
from readseg.evaluation.report import PROTOCOLS
from readseg.evaluation.run import RECORDS, StudyResult, run_study
from readseg.viz.tables import Cell, Row, Table, printable, to_markdown

MAP_NOTES: Mapping[str, str] = {
    "lmm": "h_seg . h_img^T of the last layer after the final norm: the map that the points are made of",
    "sam": "the mask decoder's final token of [SEG] against its final image tokens",
    "before": "h_seg of the last layer against the projected CLIP patches that enter the language model",
    "words": "as the first row, with the mean of the states that predict the answer's own words for the object, "
    "instead of the state that predicts [SEG]",
    "clip": "cosines of CLIP's text embedding and its patches; no language model",
}
"""What each map is, for the notes of its table."""

PROMPT_NOTES: Mapping[str, str] = {
    "plain_points": "the same points as the only prompt of the mask decoder as it was before it met a [SEG]",
    "plain_extremes": "the highest cells of the map as positive points, and as many of the lowest as negative ones, in "
    "that same decoder",
    "plain_truth": "SasP with the model's settings on the share of each image token's cell that the true mask covers, "
    "in that same decoder; also where the answer holds no [SEG]. It knows the truth: what perfect maps would give, "
    "not a score to be ranked",
    "words_points": "the projected [SEG], with the points of the words' map",
    "words_projected": "the mean state of the words is projected in place of [SEG], with the points of their map",
}
"""What a prompt is where its name does not say it, for the notes of its table."""

_TRUTH = "plain_truth"
_WORDLESS = "no answer has words of its own for what a [SEG] stands for"

MAP_COLUMNS: Mapping[str, str] = {
    "giou": "gIoU at best t",
    "ciou": "cIoU at best t",
    "pointing": "pointing",
    "mass": "mass inside",
    "auc": "AUC",
}
"""Headings of what a map knows."""

MAP_RULES = (
    "at the best threshold of each mask, found with the truth (appendix A.1): bounds on what a threshold could reach, "
    "not scores that a user would see, and not to be ranked with those of a model's own masks",
    "AUC below 0.5: the map is darker on the target than elsewhere",
    "where there is no map, an empty mask, 0, 0 and AUC 0.5 count",
)
"""How to read them."""

WHOLE = "area: the whole image"
"""The row of a map that knows nothing."""

WHOLE_NOTE = (
    f"{WHOLE}: all of the image as the mask; for pointing and mass inside the area of the target, which is what a "
    "constant map gets, and 0.5 for AUC"
)


@dataclass(frozen=True)
class Examined:
    """What a study of maps found for one model.

    Attributes:
        name: the model's.
        records: one for each expected mask, in the benchmark's order.
        protocol: of `benchmarks.Protocol`.
        about: of the study: how many images of how many.
        own: the model's own prompt, "both", "seg" or "points".
        missing: by the name of a map or prompt, why it was not measured.
        benchmark: its name, for titles.
    """

    name: str
    records: Sequence[Measured] = field(repr=False)
    protocol: str
    about: Mapping[str, Any] = field(default_factory=dict)
    own: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    benchmark: str = ""


def map_table(studies: Sequence[Examined]) -> Table:
    """Table 1: what each map knows of its target, at the best threshold of each mask and without one."""
    rows = []
    for study in studies:
        group = _group(study, studies)
        for name in _measured(study, MAPS, "maps"):
            found = [record.maps[name] for record in study.records]
            rows.append(Row(MAPS[name], map_cells(study.records, found), group))
        rows.append(Row(WHOLE, area_cells(study.records), group))
    told = (f"{MAPS[name]}: {what}" for name, what in MAP_NOTES.items() if any(MAPS[name] == r.name for r in rows))
    notes = [*MAP_RULES, *told, WHOLE_NOTE]
    for study in studies:
        nowhere = sum(not _defined(record, "pointing") for record in study.records)
        if nowhere:
            notes.append(f"{_prefix(study, studies)}{nowhere} targets are empty: they count in gIoU and cIoU only")
    return Table("What the maps know", "map", MAP_COLUMNS, rows, [*notes, *_notes(studies, MAPS, "maps")])


def prompt_table(studies: Sequence[Examined]) -> Table:
    """Table 2: the masks of each prompt. Truth enters one of them only, which says so: points from the true mask."""
    rows = []
    for study in studies:
        for name in _measured(study, PROMPTS, "prompts"):
            counts = [record.prompt_counts(name) for record in study.records]
            rows.append(Row(PROMPTS[name], iou_cells(study.records, counts), _group(study, studies)))
    told = (f"{PROMPTS[name]}: {what}" for name, what in PROMPT_NOTES.items())
    notes = [one for one in told if any(one.startswith(f"{row.name}:") for row in rows)]
    for study in studies:
        if study.own:
            notes.append(f"{_prefix(study, studies)}{PROMPTS['own']}: {PROMPTS[study.own]}")
        pointless = sum(record.prompts.get(_TRUTH, ()) is None for record in study.records)
        if pointless:
            notes.append(
                f"{_prefix(study, studies)}{PROMPTS[_TRUTH]}: {pointless} true masks cover all cells alike, none or "
                "every one: no points, and an empty mask counts"
            )
    return Table(
        "What prompts the mask decoder",
        "prompt",
        {"giou": "gIoU", "ciou": "cIoU"},
        rows,
        [*notes, *_notes(studies, PROMPTS, "prompts")],
    )


def agreement_table(studies: Sequence[Examined]) -> Table:
    """Table 3: do the maps of the language model and of the mask decoder agree, and do words and masks?"""
    columns = {
        "count": "masks",
        "iou": "IoU of the maps",
        "spearman": "Spearman",
        "words": "words right",
        "misaligned": "misaligned",
    }
    rows = []
    for study in studies:
        group = _group(study, studies)
        for name, records in _parts(study.records):
            rows.append(Row(name, _agreement_cells(records), group))
    notes = [
        f"IoU of the maps: of the masks of the maps {MAPS['lmm']!r} and {MAPS['sam']!r}, each at its own best "
        "threshold; Spearman: their rank correlation over all pixels; both over the masks that have both maps",
        "words right: the answer is the expected one word for word; where none is expected, it holds the name that was "
        "asked for, and a [SEG]; not told for answers that were given to the model, or to whole sentences",
        f"misaligned: of those with right words, the share whose mask misses the target (IoU below {MISSED:g})",
        *_coverage(studies),
    ]
    parts = [part for study in studies for _, part in _parts(study.records)]
    if any(len({record.image for record in part}) == 1 for part in parts):
        notes.append("of parts about a single image the interval has no width: it says nothing of other images")
    for study in studies:
        lacking = sum(math.isnan(record.consistency) for record in study.records)
        if lacking:
            notes.append(f"{_prefix(study, studies)}{lacking} of {len(study.records)} masks lack one of the two maps")
    return Table("Do the maps agree, and do words and masks?", "questions", columns, rows, notes)


def tables(studies: Sequence[Examined]) -> list[Table]:
    """The three tables; with several models a group of rows for each."""
    found = [map_table(studies), prompt_table(studies), agreement_table(studies)]
    names = [(study.benchmark, study.name) for study in studies]
    return [Table(titled(one.title, names), one.first, one.columns, one.rows, one.notes) for one in found]


def titled(title: str, studies: Sequence[tuple[str, str]]) -> str:
    """A table's title with the benchmark's name, and the model's where there is one.

    Args:
        title: what is shown.
        studies: the benchmark's and the model's name of each; all have one benchmark.

    >>> titled("What the maps know", [("scenes", "embedded")])
    'scenes: What the maps know: embedded'
    """
    benchmark, model = studies[0]
    before = f"{printable(benchmark)}: " if benchmark else ""
    after = f"{' ' if title.endswith('?') else ': '}{printable(model)}" if len(studies) == 1 else ""
    return f"{before}{title}{after}"


def misaligned_table(study: Examined, most: int = 100) -> Table:
    """The misaligned cases (appendix C): the words are right, the mask is not; the worst first.

    Args:
        study: of one model.
        most: so many are listed.
    """
    found = sorted((r for r in study.records if r.misaligned), key=lambda r: (r.own_iou, r.key, r.unit))
    columns = {"question": "question", "answer": "answer", "own": "own mask", "lmm": "lmm map", "sam": "sam map"}
    rows = []
    for record in found[:most]:
        cells: dict[str, Cell] = {"question": record.question, "answer": record.answer, "own": record.own_iou}
        cells |= {name: iou_of(record.map_counts(name)) for name in ("lmm", "sam")}
        rows.append(Row(f"{record.key}, mask {record.unit + 1}" if record.unit else record.key, cells))
    right = sum(record.words_right is True for record in study.records)
    told = sum(record.words_right is not None for record in study.records)
    notes = [
        f"{len(found)} of {right} masks with right words have an IoU below {MISSED:g}"
        + (f"; the first {most} are listed" if len(found) > most else ""),
        "the maps' IoU are those at the best threshold, found with the truth",
    ]
    if told < len(study.records):
        notes.append(f"of {len(study.records) - told} masks it cannot be told whether the words are right")
    return Table(
        titled("Misaligned", [(study.benchmark, study.name)]),
        "question's key",
        columns,
        rows,
        [*notes, *_coverage([study])],
    )


class Target(Protocol):
    """What a record says of the mask that it is about."""

    @property
    def key(self) -> str:
        """Of the question."""

    @property
    def image(self) -> str:
        """Whose scores are not independent."""

    @property
    def wanted(self) -> int:
        """Pixels on the target."""

    @property
    def counted(self) -> int:
        """Pixels that count."""


def map_cells(targets: Sequence[Target], found: Sequence[MapScores | None]) -> dict[str, Cell]:
    """The scores of a map over many targets, by the columns of `MAP_COLUMNS`.

    Where there is no map, an empty mask counts: it points nowhere, and ranks no pixel above another.

    Args:
        targets: one for each mask.
        found: of each of them.
    """
    pairs = list(zip(targets, found, strict=True))
    cells = iou_cells(targets, [Counts(0, t.wanted) if one is None else one.counts for t, one in pairs])
    numbers: Mapping[str, tuple[Callable[[MapScores], float], float]] = {
        "pointing": (lambda scores: scores.pointing, 0.0),
        "mass": (lambda scores: scores.mass_inside, 0.0),
        "auc": (lambda scores: scores.auc, 0.5),
    }
    for column, (number, absent) in numbers.items():
        there = [(target, one) for target, one in pairs if _defined(target, column)]
        values = [math.nan if one is None else number(one) for _, one in there]
        known = [absent if math.isnan(value) else value for value in values]
        cells[column] = estimate(known, groups=[target.image for target, _ in there])
    return cells


def area_cells(targets: Sequence[Target]) -> dict[str, Cell]:
    """The scores of a constant map, whose one mask is the whole image, by the columns of `MAP_COLUMNS`."""
    cells = iou_cells(targets, [Counts(target.wanted, target.counted) for target in targets])
    for column in ("pointing", "mass", "auc"):
        there = [target for target in targets if _defined(target, column)]
        values = [0.5 if column == "auc" else target.wanted / target.counted for target in there]
        cells[column] = estimate(values, groups=[target.image for target in there])
    return cells


def iou_cells(targets: Sequence[Target], counts: Sequence[Counts]) -> dict[str, Cell]:
    """The columns "giou" and "ciou" of masks."""
    inter, union = [c.intersection for c in counts], [c.union for c in counts]
    images = [target.image for target in targets]
    return {
        "giou": estimate(mask_ious(inter, union), groups=images),
        "ciou": estimate(inter, union, groups=images),
    }


def _defined(target: Target, column: str) -> bool:
    """Whether a target allows a number: one without a pixel has no place, one of all pixels no other pixel."""
    return target.wanted > 0 and (column != "auc" or target.wanted < target.counted)


def _agreement_cells(records: Sequence[Measured]) -> dict[str, Cell]:
    def mean(number: Callable[[Measured], float], there: Callable[[Measured], bool]) -> Estimate:
        kept = [record for record in records if there(record)]
        return estimate([number(record) for record in kept], groups=[record.image for record in kept])

    return {
        "count": str(len(records)),
        "iou": mean(lambda r: r.consistency, lambda r: not math.isnan(r.consistency)),
        "spearman": mean(lambda r: r.spearman, lambda r: not math.isnan(r.spearman)),
        "words": mean(lambda r: float(r.words_right is True), lambda r: r.words_right is not None),
        "misaligned": mean(lambda r: float(r.misaligned), lambda r: r.words_right is True),
    }


def _parts(records: Sequence[Measured]) -> list[tuple[str, Sequence[Measured]]]:
    """All of them; then by section and by kind, where there are several."""
    parts: list[tuple[str, Sequence[Measured]]] = [("all", records)]
    for what, value in (("section", lambda r: r.section), ("kind", lambda r: r.kind)):
        names = sorted({value(record) for record in records} - {""})
        if len(names) > 1:
            parts += [(f"{what}: {name}", [r for r in records if value(r) == name]) for name in names]
    return parts


def _measured(study: Examined, names: Mapping[str, str], where: str) -> list[str]:
    """The maps, or prompts, that at least one mask has."""
    found = [getattr(record, where) for record in study.records]
    return [name for name in names if any(one.get(name) is not None for one in found)]


def _group(study: Examined, studies: Sequence[Examined]) -> str:
    return study.name if len(studies) > 1 else ""


def _prefix(study: Examined, studies: Sequence[Examined]) -> str:
    return f"{printable(study.name)}: " if len(studies) > 1 else ""


def _notes(studies: Sequence[Examined], names: Mapping[str, str], where: str) -> list[str]:
    """What rows leave out, what they count as empty, and what all of them are over."""
    notes = []
    for study in studies:
        there = _measured(study, names, where)
        total = len(study.records)
        without = sum(not record.places for record in study.records)
        if without:
            notes.append(f"{_prefix(study, studies)}{without} of {total} masks: the answer holds no [SEG] for them")
        lacking = {
            name: sum(getattr(record, where)[name] is None for record in study.records)
            for name in there
            if name != _TRUTH  # it has reasons of its own
        }
        told = ", ".join(f"{names[name]} {count}" for name, count in lacking.items() if count not in (0, without))
        if told:
            notes.append(f"{_prefix(study, studies)}empty, also for want of words or of a range: {told}")
        for name in names:
            if name not in there and total:
                why = study.missing.get(name, _WORDLESS if name.startswith("words") else "no mask has one")
                notes.append(f"{_prefix(study, studies)}{names[name]}: not available: {why}")
    sections = dict.fromkeys(record.section for study in studies for record in study.records)
    if len(sections) > 1:
        notes.append(f"all sections of the benchmark together: {', '.join(map(printable, sections))}")
    return [*notes, *_coverage(studies)]


def coverage(studies: Sequence[tuple[str, Sequence[Target], Mapping[str, Any], str]]) -> list[str]:
    """Notes on what tables are over: masks, questions, images, whether that is a sample, and the protocol.

    Args:
        studies: of each model its name, its records, what is known of the study (`study.Study.about`), the protocol.
    """
    notes = []
    for name, records, about, _ in studies:
        images, keys = len({record.image for record in records}), len({record.key for record in records})
        note = f"{len(records)} masks of {keys} questions about {images} images, true premises only"
        looked, of = about.get("images"), about.get("of")
        if isinstance(looked, int) and images < looked:
            note += f"; nothing that is there is asked about the other {looked - images} that were looked at"
        if isinstance(looked, int) and isinstance(of, int) and looked < of:
            note += f"; a sample of {looked} of {of} images"
        notes.append(f"{printable(name)}: {note}" if len(studies) > 1 else note)
    protocols = dict.fromkeys(protocol for *_, protocol in studies)
    return [*notes, "intervals of 95% draw whole images", *(PROTOCOLS[protocol] for protocol in protocols)]


def _coverage(studies: Sequence[Examined]) -> list[str]:
    return coverage([(study.name, study.records, study.about, study.protocol) for study in studies])


MISALIGNED, PAGE = "misaligned.md", "report.html"


@dataclass(frozen=True)
class MapOptions:
    """Of the study "maps"."""

    sam: Annotated[
        str | None,
        typer.Option(
            help="The SAM that the model was trained from: folder, hub id or .pth file; by default its mask decoder "
            "beside the model."
        ),
    ] = None
    extremes: Annotated[int, typer.Option(min=1, help="So many highest and lowest cells prompt that SAM too.")] = (
        EXTREMES
    )
    clip: Annotated[str | None, typer.Option(help="Folder or hub id of a CLIP with its text encoder.")] = None


def run(context: StudyContext, options: MapOptions) -> StudyOutput:
    """The tables of section 3.2; for each model its records, its misaligned cases and a page."""
    examined: list[Examined] = []
    files: list[Path] = []
    for model in context.models:
        study = _look(context, model, options)
        examined.append(_examined(context, model, study))
        folder = context.folder_of(model)
        with atomic_write(folder / MISALIGNED) as place:
            place.write_text(to_markdown(misaligned_table(examined[-1])), encoding="utf-8", errors="replace")
        _write_page(context, examined[-1], study, folder / PAGE)
        files += [folder / MISALIGNED, folder / PAGE]
    return StudyOutput(tables(examined), files=files)


def _examined(context: StudyContext, model: StudyModel, study: StudyResult[dict[str, Any]]) -> Examined:
    """A study's records, read."""
    try:
        records = [Measured.from_json(record) for record in study.records]
    except ReadsegError as error:
        raise ReadsegError(f"{context.folder_of(model) / RECORDS}: {error}") from error
    own = study.settings["prompt"] or model.segmenter.model.config.prompt
    protocol, benchmark = str(study.settings["protocol"]), context.benchmark.name
    return Examined(model.name, records, protocol, study.about, own, _missing(study), benchmark)


def _look(context: StudyContext, model: StudyModel, options: MapOptions) -> StudyResult[dict[str, Any]]:
    """What is recorded of every expected mask, from disk where it was measured before."""
    segmenter = model.segmenter
    prompt, chosen = context.points(segmenter)
    plain = plain_sam(segmenter, options.sam)
    pair = None if options.clip is None else load_clip(options.clip, segmenter.model.device)
    means = Means(prompt, chosen, plain, pair, options.extremes)
    settings = {
        **model.settings,
        "prompt": prompt,
        "points": asdict(chosen or segmenter.model.config.points),
        "original_sam": None if plain is None else digest([plain.mask_decoder]),
        "clip": None if pair is None else digest([pair[0]]),
        "extremes": means.extremes,
        "record": RECORD,
    }

    def look(page: Any) -> list[dict[str, Any]]:
        found = (examine(segmenter, case, means) for case in cases_of(segmenter, context.benchmark, page))
        return [record.to_json() for records in found for record in records]

    return run_study(
        context.benchmark,
        look,
        dict[str, Any],
        name="maps",
        settings=settings,
        folder=context.folder_of(model),
        limit=context.limit,
        progress=True,
    )


def _missing(study: StudyResult[dict[str, Any]]) -> dict[str, str]:
    """What was not measured, and why."""
    missing = {}
    if study.settings["clip"] is None:
        missing["clip"] = (
            "it needs a CLIP with a text encoder (--clip); the vision tower inside a model of this family has none"
        )
    if study.settings["original_sam"] is None:
        why = "the original SAM is not beside the model (--sam)"
        missing |= dict.fromkeys(("plain_points", "plain_extremes", "plain_truth"), why)
    return missing


def _write_page(context: StudyContext, examined: Examined, study: StudyResult[dict[str, Any]], path: Path) -> None:
    """The page with all units, and pictures of some."""
    records = examined.records
    shown = set(picked([record.own_iou for record in records], [record.misaligned for record in records]))
    numbers = {name: number for number, name in enumerate(context.benchmark.names)}
    cases = []
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for place, record in enumerate(track(records, "pictures", console=console, disable=hidden, transient=True)):
        picture = load_image(context.benchmark[numbers[record.image]].image) if place in shown else None
        cases.append(page_case(record, examined.name, picture))
    facts = {
        "model": examined.name,
        "benchmark": context.benchmark.name,
        "protocol": examined.protocol,
        "images": f"{study.about['images']} of {study.about['of']}",
        "masks": str(len(records)),
    }
    found: list[Table] = tables([examined])
    write_page(path, PageData(f"Maps of {examined.name} on {context.benchmark.name}", facts, found, cases))


STUDY = Study("maps", MapOptions, run, takes_points=True)
