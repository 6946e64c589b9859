"""Similarity as points in a LISA-style model: the few lines that its loop gains.

A LISA-style model answers with [SEG] and prompts SAM with the projected state of each [SEG], alone. It has all that
similarity as points needs: h_seg (S, D), the states that predict [SEG], and h_img (N, D), those of the image tokens.
`segment` below is LISA's loop; what is marked SasP, and `points_of`, is all that is new.

    python examples/sasp_in_lisa.py                     # the embedded model on 60 held-out scenes
    python examples/sasp_in_lisa.py --model FOLDER      # any model of the family, in any layout

Released weights need no code, the command line has the switch:

    readseg segment photo.jpg "the umbrella" --model xinlai/LISA-7B-v1 --points on

The embedded model was trained with points: [SEG] alone is nothing that its mask decoder was made for, and its gain is
not LISA's. `make_lisa.py` makes a model whose mask decoder was fine-tuned with [SEG] alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from readseg import PointConfig, ReadModel, ReadsegError, Segmenter
from readseg.cli.errors import run
from readseg.core.frames import ImageFrame
from readseg.core.io import atomic_write
from readseg.core.masks import intersection_and_union, union
from readseg.core.sasp import PointPrompts, full_map, points_from_scores, similarity
from readseg.core.stats import estimate, mask_ious
from readseg.core.types import Turn
from readseg.evaluation.scenes import SceneSet, scene_cases
from readseg.model.mask_prompts import decode_prompts, embed_prompts
from readseg.model.prompt_format import inference_question
from readseg.viz.overlays import contact_sheet, heat_map, overlay

LISA, DISCRETE, DTOC = "[SEG] alone", "[SEG] + discrete points", "[SEG] + points with DtoC"


@dataclass(frozen=True)
class States:
    """What a LISA-style model has in hand after an answer; S counts the answer's [SEG].

    answer: its words. h_seg: (S, D), the states that predict each [SEG]. h_img: (N, D), those of the image tokens.
    embeddings: (1, C, h, w), SAM's view of the image. frame: how token grid, image and SAM's square lie on each other.
    """

    answer: str
    h_seg: Tensor
    h_img: Tensor
    embeddings: Tensor
    frame: ImageFrame


@torch.no_grad()
def ask(segmenter: Segmenter, image: Image.Image, questions: Sequence[str]) -> list[States]:
    """The language model's own answers to questions about an image."""
    model, processor = segmenter.model, segmenter.processor
    embeddings = model.embed_masks_image(processor.mask_pixels(image)[None].to(model.device))
    features = model.encode_image(processor.lmm_pixels(image)[None].to(model.device))
    cache, h_img = model.prefill(processor.prefix_ids(), features)
    turns = [[Turn(inference_question(model.config.conversation, question))] for question in questions]
    answers = model.generate_answers(processor.prefix_ids(), cache, [processor.query_ids(turn) for turn in turns])
    found = []
    for answer in answers:
        places = [place for place, token in enumerate(answer.ids) if token == model.config.seg_token_id]
        words = processor.decode(answer.ids)
        found.append(States(words, answer.states[places], h_img, embeddings, processor.frame(image)))
    return found


def points_of(states: States, settings: PointConfig) -> PointPrompts:
    """SasP: the similarity of [SEG] to the image tokens becomes points, in pixels of the image."""
    scores = similarity(states.h_seg.float(), states.h_img.float())
    return points_from_scores(scores, states.frame.hw, settings, box=states.frame.lmm_box)


@torch.no_grad()
def segment(model: ReadModel, states: States, settings: PointConfig | None = None) -> np.ndarray:
    """The masks (S, H, W) of an answer: LISA's loop over its [SEG], with points where their settings are given."""
    points = None if settings is None else points_of(states, settings)  # SasP
    masks = np.zeros((len(states.h_seg), *states.frame.hw), bool)
    for k, token in enumerate(model.seg_projection(states.h_seg)):
        xy_in_sam = labels = None
        if points is not None and points.valid[k].any():  # SasP
            xy_in_sam = states.frame.to_mask_frame(points.xy[k, points.valid[k]])[None]  # SasP
            labels = points.labels[k, points.valid[k]][None]  # SasP
        # SAM's own code of the points, then [SEG] as the last token.
        sparse = embed_prompts(model.sam, xy_in_sam, labels, tokens=token[None, None])
        logits, _ = decode_prompts(model.sam, states.embeddings, sparse)
        masks[k] = (states.frame.masks_to_image(logits[0])[0] > 0).cpu().numpy()
    return masks


def three_ways(model: ReadModel, states: States) -> dict[str, np.ndarray]:
    """The masks of one answer by all three prompts; states and decoder are the same, only the prompt differs."""
    settings = model.config.points
    return {
        LISA: segment(model, states),
        DISCRETE: segment(model, states, replace(settings, dtoc=False)),
        DTOC: segment(model, states, replace(settings, dtoc=True)),
    }


def overlaps(masks: np.ndarray, targets: np.ndarray) -> list[float]:
    """IoU of each of T targets (T, H, W) with the mask of the [SEG] in its place; 0 where the answer has none."""
    given = np.concatenate([masks, np.zeros_like(targets)])[: len(targets)]
    counts = [intersection_and_union(mask, target) for mask, target in zip(given, targets, strict=True)]
    return list(mask_ious(*zip(*counts, strict=True)))


def draw(
    image: Image.Image, states: States, masks: dict[str, np.ndarray], targets: np.ndarray, settings: PointConfig
) -> Image.Image:
    """Map and points of an answer's first [SEG], the truth, and its mask without and with points."""
    scores = similarity(states.h_seg[:1].float(), states.h_img.float())
    box = states.frame.lmm_box if settings.alignment == "exact" else None
    seen = full_map(scores, states.frame.hw, alignment=settings.alignment, box=box)[0].cpu().numpy()
    points = points_of(states, settings)
    xy, labels = (values[0, points.valid[0]].cpu().numpy() for values in (points.xy, points.labels))
    panels = {
        f"map and points: {states.answer}": heat_map(image, seen, points=[(xy, labels)]),
        "the truth": overlay(image, targets[:1]),
    }
    for way in (LISA, DTOC):
        panels[f"{way}: IoU {overlaps(masks[way], targets)[0]:.2f}"] = overlay(image, masks[way][:1])
    return contact_sheet(list(panels.values()), list(panels), columns=2, tile=440)


def main(
    model: Annotated[str | None, typer.Option(help="Folder or hub id; by default the embedded model.")] = None,
    scenes: Annotated[int, typer.Option("--count", min=1, help="Scenes, the first of the fixed test set.")] = 60,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("demo_output/sasp_in_lisa.png"),
) -> None:
    segmenter = Segmenter.from_pretrained(model)
    ious: dict[str, list[float]] = {LISA: [], DISCRETE: [], DTOC: []}
    groups: list[str] = []
    picture = None
    for case in track(scene_cases(SceneSet(scenes)), "scenes", total=scenes, transient=True):
        image = Image.fromarray(case.picture.image)
        asked = [question for question in case.questions if question.present]
        answers = ask(segmenter, image, [question.question for question in asked])
        for question, states in zip(asked, answers, strict=True):
            targets = np.stack([union(case.picture.masks[list(target)]) for target in question.targets])
            masks = three_ways(segmenter.model, states)
            for way, found in masks.items():
                ious[way] += overlaps(found, targets)
            groups += [case.name] * len(targets)
            if picture is None and len(states.h_seg):
                picture = draw(image, states, masks, targets, segmenter.model.config.points)
    table = Table(f"{scenes} scenes, {len(groups)} masks", "gIoU [95%]", "gain [95%]")
    for way, values in ious.items():
        gain = "" if way == LISA else str(estimate(np.subtract(values, ious[LISA]), groups=groups))
        table.add_row(way, str(estimate(values, groups=groups)), gain)
    Console().print(table)
    if picture is None:
        raise ReadsegError("no answer holds [SEG]: there is nothing to draw")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as place:
        picture.save(place, "PNG", optimize=True)
    Console().print(f"picture: {out}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    run(app)
