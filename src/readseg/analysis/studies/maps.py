"""The tables of section 3.2, made of records: what maps know, what prompts are worth, and whether maps agree.

All rows of a table are over the same expected masks. Where there is no map or no mask - no [SEG] in the answer, no
words, a constant map - an empty mask counts, never nothing at all; notes say how many. Source: appendices A.1, B and C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from readseg.analysis.answer_states import EXTREMES, TEXTS, ExamineOptions, Spec
from readseg.analysis.cases import cases_of
from readseg.analysis.page import pick_units, small_picture, write_page
from readseg.analysis.prompts import PROMPTS, load_original_sam
from readseg.analysis.similarity_maps import MAPS, load_clip
from readseg.analysis.studies.map_records import MISSED, RECORD, LayerRecord, MapRecord, MapScores, examine
from readseg.analysis.study import Study, StudyContext, StudyModel, StudyOutput
from readseg.checkpoints.load import digest
from readseg.core.images import load_image
from readseg.core.io import atomic_write, read_yaml
from readseg.core.masks import Counts
from readseg.core.stats import Estimate, estimate, mask_ious
from readseg.evaluation.benchmarks import ImageQuestions
from readseg.evaluation.report import PROTOCOLS
from readseg.viz.tables import Cell, Row, Table, printable, to_markdown

_TRUTH = "plain_truth"  # its masks are missing for reasons of their own
_TEXTS = read_yaml(Path(__file__).with_suffix(".yaml"))
MAP_COLUMNS: Mapping[str, str] = _TEXTS["map_columns"]
MAP_RULES: Sequence[str] = _TEXTS["map_rules"]
WHOLE, WHOLE_NOTE = _TEXTS["whole"], _TEXTS["whole_note"]  # of the row of a map that knows nothing
# By their columns: the score of a map, and what counts where there is none.
_MAP_SCORES = {"pointing": ("pointing", 0.0), "mass": ("mass_inside", 0.0), "auc": ("auc", 0.5)}

Target = MapRecord | LayerRecord
R = TypeVar("R", bound=Target, covariant=True)


@dataclass(frozen=True)
class ModelStudy(Generic[R]):
    """What a study measured of one model."""

    name: str
    records: Sequence[R] = field(repr=False)  # one for each expected mask, in the benchmark's order
    protocol: str
    about: Mapping[str, Any] = field(default_factory=dict)  # how many images of how many
    benchmark: str = ""
    own: str = ""  # of maps: the model's own prompt
    missing: Mapping[str, str] = field(default_factory=dict)  # by the name of a map or prompt: why it was not measured


MapStudy = ModelStudy[MapRecord]


def map_table(studies: Sequence[MapStudy]) -> Table:
    """Table 1: what each map knows of its target, at the best threshold of each mask and without one."""
    rows = []
    for study in studies:
        group = _group(study, studies)
        for name in _measured(study, MAPS, "maps"):
            scores = [record.maps[name] for record in study.records]
            rows.append(Row(MAPS[name].title, map_cells(study.records, scores), group))
        rows.append(Row(WHOLE, area_cells(study.records), group))
    notes = [*MAP_RULES, *_spec_notes(MAPS, rows), WHOLE_NOTE]
    for study in studies:
        if empty := sum(record.wanted == 0 for record in study.records):
            notes.append(f"{_prefix(study, studies)}{empty} targets are empty: they count in gIoU and cIoU only")
    return Table("What the maps know", "map", MAP_COLUMNS, rows, [*notes, *_notes(studies, MAPS, "maps")])


def prompt_table(studies: Sequence[MapStudy]) -> Table:
    """Table 2: the masks of each prompt. Truth enters one of them only, which says so: points from the true mask."""
    rows = []
    for study in studies:
        for name in _measured(study, PROMPTS, "prompts"):
            counts = [record.prompt_counts(name) for record in study.records]
            rows.append(Row(PROMPTS[name].title, iou_cells(study.records, counts), _group(study, studies)))
    notes = _spec_notes(PROMPTS, rows)
    for study in studies:
        if study.own:
            notes.append(f"{_prefix(study, studies)}{PROMPTS['own'].title}: {PROMPTS[study.own].title}")
        if pointless := sum(record.prompts.get(_TRUTH, ()) is None for record in study.records):
            notes.append(f"{_prefix(study, studies)}{PROMPTS[_TRUTH].title}: {pointless} {_TEXTS['no_points']}")
    notes += _notes(studies, PROMPTS, "prompts")
    return Table("What prompts the mask decoder", "prompt", {"giou": "gIoU", "ciou": "cIoU"}, rows, notes)


def agreement_table(studies: Sequence[MapStudy]) -> Table:
    """Table 3: do the maps of the language model and of the mask decoder agree, and do words and masks?"""
    parts = [(study, name, records) for study in studies for name, records in _parts(study.records)]
    rows = [Row(name, _agreement_cells(records), _group(study, studies)) for study, name, records in parts]
    words = {"lmm": MAPS["lmm"].title, "sam": MAPS["sam"].title, "missed": MISSED}
    notes = [*(note.format_map(words) for note in _TEXTS["agreement_notes"]), *coverage(studies)]
    if any(len({record.image for record in records}) == 1 for _, _, records in parts):
        notes.append("of parts about a single image the interval has no width: it says nothing of other images")
    for study in studies:
        if lacking := sum(math.isnan(record.consistency) for record in study.records):
            notes.append(f"{_prefix(study, studies)}{lacking} of {len(study.records)} masks lack one of the two maps")
    title = "Do the maps agree, and do words and masks?"
    return Table(title, "questions", _TEXTS["agreement_columns"], rows, notes)


def tables(studies: Sequence[MapStudy]) -> list[Table]:
    """The three tables; with several models a group of rows for each."""
    made = (map_table(studies), prompt_table(studies), agreement_table(studies))
    return [replace(table, title=titled(table.title, studies)) for table in made]


def misaligned_table(study: MapStudy, most: int = 100) -> Table:
    """The misaligned cases (appendix C) of one model: the words are right, the mask is not; the worst first."""
    misaligned = sorted((r for r in study.records if r.misaligned), key=lambda r: (r.own_iou, r.key, r.unit))
    rows = []
    for record in misaligned[:most]:
        ious = {name: record.map_counts(name).iou for name in ("lmm", "sam")}
        cells: dict[str, Cell] = {"question": record.question, "answer": record.answer, "own": record.own_iou, **ious}
        rows.append(Row(f"{record.key}, mask {record.unit + 1}" if record.unit else record.key, cells))
    right = sum(record.words_right is True for record in study.records)
    judged = sum(record.words_right is not None for record in study.records)
    notes = [
        f"{len(misaligned)} of {right} masks with right words have an IoU below {MISSED:g}"
        + (f"; the first {most} are listed" if len(misaligned) > most else ""),
        "the maps' IoU are those at the best threshold, found with the truth",
    ]
    if judged < len(study.records):
        notes.append(f"of {len(study.records) - judged} masks it cannot be told whether the words are right")
    title, notes = titled("Misaligned", [study]), [*notes, *coverage([study])]
    return Table(title, "question's key", _TEXTS["misaligned_columns"], rows, notes)


# -- what the studies of maps and of layers share ----------------------------------------------------------------------


def titled(title: str, studies: Sequence[ModelStudy[Target]]) -> str:
    """A table's title with the benchmark's name, and the model's where there is one."""
    benchmark, model = studies[0].benchmark, studies[0].name
    before = f"{printable(benchmark)}: " if benchmark else ""
    after = f"{' ' if title.endswith('?') else ': '}{printable(model)}" if len(studies) == 1 else ""
    return f"{before}{title}{after}"


def coverage(studies: Sequence[ModelStudy[Target]]) -> list[str]:
    """Notes on what tables are over: masks, questions, images, whether that is a sample, and the protocol."""
    notes = []
    for study in studies:
        images, keys = len({record.image for record in study.records}), len({record.key for record in study.records})
        note = f"{len(study.records)} masks of {keys} questions about {images} images, true premises only"
        looked, of = study.about.get("images"), study.about.get("of")
        if isinstance(looked, int) and images < looked:
            note += f"; nothing that is there is asked about the other {looked - images} that were looked at"
        if isinstance(looked, int) and isinstance(of, int) and looked < of:
            note += f"; a sample of {looked} of {of} images"
        notes.append(f"{_prefix(study, studies)}{note}")
    protocols = dict.fromkeys(study.protocol for study in studies)
    return [*notes, "intervals of 95% draw whole images", *(PROTOCOLS[protocol] for protocol in protocols)]


def map_cells(targets: Sequence[Target], scores: Sequence[MapScores | None]) -> dict[str, Cell]:
    """The scores of a map over many targets, by the columns of `MAP_COLUMNS`.

    Where there is no map, an empty mask counts: it points nowhere, and ranks no pixel above another.
    """
    pairs = list(zip(targets, scores, strict=True))
    cells = iou_cells(targets, [Counts(0, t.wanted) if one is None else one.counts for t, one in pairs])
    for column, (name, absent) in _MAP_SCORES.items():
        # A target without a pixel has no place, one of all pixels no other pixel.
        defined = [(t, one) for t, one in pairs if t.wanted > 0 and (column != "auc" or t.wanted < t.counted)]
        values = [getattr(one, name, math.nan) for _, one in defined]
        known = [absent if math.isnan(value) else value for value in values]
        cells[column] = estimate(known, groups=[target.image for target, _ in defined])
    return cells


def area_cells(targets: Sequence[Target]) -> dict[str, Cell]:
    """The scores of a constant map, whose one mask is the whole image, by the columns of `MAP_COLUMNS`."""
    areas = [target.wanted / max(target.counted, 1) for target in targets]
    return map_cells(
        targets, [MapScores(Counts(t.wanted, t.counted), 0.0, a, a, 0.5) for t, a in zip(targets, areas, strict=True)]
    )


def iou_cells(targets: Sequence[Target], counts: Sequence[Counts]) -> dict[str, Cell]:
    """The columns "giou" and "ciou" of masks."""
    inter, union = [c.intersection for c in counts], [c.union for c in counts]
    images = [target.image for target in targets]
    giou, ciou = estimate(mask_ious(inter, union), groups=images), estimate(inter, union, groups=images)
    return {"giou": giou, "ciou": ciou}


# -- rows and notes ----------------------------------------------------------------------------------------------------


def _agreement_cells(records: Sequence[MapRecord]) -> dict[str, Cell]:
    def mean(number: Callable[[MapRecord], float], has: Callable[[MapRecord], bool]) -> Estimate:
        kept = [record for record in records if has(record)]
        return estimate([number(record) for record in kept], groups=[record.image for record in kept])

    return {
        "count": str(len(records)),
        "iou": mean(lambda r: r.consistency, lambda r: not math.isnan(r.consistency)),
        "spearman": mean(lambda r: r.spearman, lambda r: not math.isnan(r.spearman)),
        "words": mean(lambda r: float(r.words_right is True), lambda r: r.words_right is not None),
        "misaligned": mean(lambda r: float(r.misaligned), lambda r: r.words_right is True),
    }


def _parts(records: Sequence[MapRecord]) -> list[tuple[str, Sequence[MapRecord]]]:
    """All of them; then by section and by kind, where there are several."""
    parts: list[tuple[str, Sequence[MapRecord]]] = [("all", records)]
    for what in ("section", "kind"):
        names = sorted({getattr(record, what) for record in records} - {""})
        if len(names) > 1:
            parts += [(f"{what}: {name}", [r for r in records if getattr(r, what) == name]) for name in names]
    return parts


def _measured(study: MapStudy, specs: Mapping[str, Spec], field: str) -> list[str]:
    """The maps, or prompts, that at least one mask has."""
    values = [getattr(record, field) for record in study.records]
    return [name for name in specs if any(one.get(name) is not None for one in values)]


def _spec_notes(specs: Mapping[str, Spec], rows: Sequence[Row]) -> list[str]:
    """What the maps or prompts of some rows are, where their titles do not say it."""
    titles = {row.name for row in rows}
    return [f"{spec.title}: {spec.note}" for spec in specs.values() if spec.note and spec.title in titles]


def _group(study: ModelStudy[Target], studies: Sequence[ModelStudy[Target]]) -> str:
    return study.name if len(studies) > 1 else ""


def _prefix(study: ModelStudy[Target], studies: Sequence[ModelStudy[Target]]) -> str:
    return f"{printable(study.name)}: " if len(studies) > 1 else ""


def _notes(studies: Sequence[MapStudy], specs: Mapping[str, Spec], field: str) -> list[str]:
    """What rows leave out, what they count as empty, and what all of them are over."""
    notes = []
    for study in studies:
        prefix, measured, total = _prefix(study, studies), _measured(study, specs, field), len(study.records)
        if without := sum(not record.places for record in study.records):
            notes.append(f"{prefix}{without} of {total} masks: the answer holds no [SEG] for them")
        lacking = {name: sum(getattr(record, field)[name] is None for record in study.records) for name in measured}
        lacking.pop(_TRUTH, None)
        if listed := ", ".join(f"{specs[name].title} {n}" for name, n in lacking.items() if n not in (0, without)):
            notes.append(f"{prefix}empty, also for want of words or of a range: {listed}")
        for name, spec in specs.items():
            if name not in measured and total:
                notes.append(f"{prefix}{spec.title}: not available: {study.missing.get(name, spec.absent)}")
    sections = dict.fromkeys(record.section for study in studies for record in study.records)
    if len(sections) > 1:
        notes.append(f"all sections of the benchmark together: {', '.join(map(printable, sections))}")
    return [*notes, *coverage(studies)]


# -- the study ---------------------------------------------------------------------------------------------------------

MISALIGNED, PAGE = "misaligned.md", "report.html"


@dataclass(frozen=True)
class SamOptions:
    """Of the original SAM beside a model."""

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


@dataclass(frozen=True)
class MapOptions(SamOptions):
    """Of the study "maps"."""

    clip: Annotated[str | None, typer.Option(help="Folder or hub id of a CLIP with its text encoder.")] = None


def run(context: StudyContext, options: MapOptions) -> StudyOutput:
    """The tables of section 3.2; for each model its records, its misaligned cases and a page."""
    studies: list[MapStudy] = []
    files: list[Path] = []
    for model in context.models:
        studies.append(_measure(context, model, options))
        folder = context.folder_of(model)
        with atomic_write(folder / MISALIGNED) as place:
            place.write_text(to_markdown(misaligned_table(studies[-1])), encoding="utf-8", errors="replace")
        _write_page(context, studies[-1], folder / PAGE)
        files += [folder / MISALIGNED, folder / PAGE]
    return StudyOutput(tables(studies), files=files)


def _measure(context: StudyContext, model: StudyModel, options: MapOptions) -> MapStudy:
    """The records of every expected mask, from disk where they were measured before, and what was not available."""
    segmenter = model.segmenter
    prompt, points = context.points(segmenter)
    sam = load_original_sam(segmenter, options.sam)
    clip = None if options.clip is None else load_clip(options.clip, segmenter.model.device)
    settings = {
        **model.settings,
        "prompt": prompt,
        "points": asdict(points or segmenter.model.config.points),
        "original_sam": None if sam is None else digest([sam.mask_decoder]),
        "clip": None if clip is None else digest([clip[0]]),
        "extremes": options.extremes,
        "record": RECORD,
    }
    examine_options = ExamineOptions(prompt, points, sam, clip, options.extremes)

    def measure(page: ImageQuestions) -> list[MapRecord]:
        cases = cases_of(segmenter, context.benchmark, page)
        return [record for case in cases for record in examine(segmenter, case, examine_options)]

    records = context.measure(model, measure, MapRecord, "maps", settings)
    lacking = {name: spec.requires for name, spec in {**MAPS, **PROMPTS}.items() if spec.requires}
    return MapStudy(
        model.name,
        records,
        context.benchmark.protocol,
        context.about,
        context.benchmark.name,
        own=prompt or segmenter.model.config.prompt,
        missing={name: TEXTS["missing"][part] for name, part in lacking.items() if settings[part] is None},
    )


def _write_page(context: StudyContext, study: MapStudy, path: Path) -> None:
    """The page with all units, and pictures of some."""
    records, benchmark = study.records, context.benchmark
    pictured = pick_units([record.own_iou for record in records], [record.misaligned for record in records])
    numbers = {name: number for number, name in enumerate(benchmark.names)}
    console = Console(stderr=True)
    units = track(pictured, "pictures", console=console, disable=not console.is_terminal, transient=True)
    pictures = {unit: small_picture(load_image(benchmark[numbers[records[unit].image]].image)) for unit in units}
    facts = {
        "model": study.name,
        "benchmark": benchmark.name,
        "protocol": study.protocol,
        "images": f"{study.about['images']} of {study.about['of']}",
        "masks": str(len(records)),
    }
    write_page(path, f"Maps of {study.name} on {benchmark.name}", facts, tables([study]), records, pictures)


STUDY = Study("maps", MapOptions, run, takes_points=True)
