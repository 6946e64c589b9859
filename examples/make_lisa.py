"""A LISA-style sibling of the embedded model: the same language model, a SAM that was fine-tuned with [SEG] alone.

LISA starts from a SAM that knows clicks and boxes, and fine-tunes its mask decoder and the projection of [SEG] without
ever giving it a point. So does this: from the embedded model's plain mask decoder, which knows points and no question,
and a fresh projection, on drawn scenes of their own, with the language model and both encoders as they are.

    python examples/make_lisa.py --out runs/lisa                    # [SEG] alone
    python examples/make_lisa.py --out runs/twin --prompt both      # the same start, data and steps, with points
    python examples/sasp_in_lisa.py --model runs/lisa

The folder is a model like any other: `readseg segment IMAGE QUERY --model runs/lisa --points on`. What it is not: a
model trained as a whole without points. Its language model learned beside points, and its map was taught (model card).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn

from readseg import ReadModel, ReadsegError, Segmenter
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import EMBEDDED
from readseg.cli.errors import run
from readseg.core.frames import ImageFrame
from readseg.core.io import atomic_write
from readseg.core.masks import union
from readseg.core.types import Turn
from readseg.model.config import Prompt
from readseg.model.losses import mask_losses
from readseg.scenes.questions import ask
from readseg.scenes.render import make_scene, render

FIRST_SEED = 2_000_000  # training draws from 1,000,000 on, the test set from 500,000 on
SCENES_A_STEP, QUESTIONS, WARMUP = 4, 6, 50
PROJECTION_RATE, DECODER_RATE = 1e-3, 3e-4


@dataclass(frozen=True)
class SceneBatch:
    """A scene's [SEG], all that the language model says of them, and their true masks.

    h_seg: (S, D). scores: (S, N). embeddings: (1, C, h, w). masks: (S, H, W), 0 or 1.
    """

    h_seg: Tensor
    scores: Tensor
    embeddings: Tensor
    frame: ImageFrame
    masks: Tensor


@torch.no_grad()
def study(segmenter: Segmenter, seed: int) -> SceneBatch | None:
    """The states of the true answers to questions about a scene; the language model is frozen, so once is enough."""
    model, processor = segmenter.model, segmenter.processor
    scene = make_scene(seed)
    drawn, rng = render(scene), np.random.default_rng([seed, 1])
    image, prefix = Image.fromarray(drawn.image), processor.prefix_ids()
    questions = ask(scene, drawn.areas, drawn.boxes, rng, count=QUESTIONS, false_premise_rate=0.0, text_only_rate=0.0)
    questions = [question for question in questions if question.targets]
    if not questions:
        return None
    turns = [[Turn(question.question, question.answer)] for question in questions]
    cache, h_img = model.prefill(prefix, model.encode_image(processor.lmm_pixels(image)[None]))
    asked, said = [processor.query_ids(turn) for turn in turns], [processor.answer_ids(turn) for turn in turns]
    answers = model.force_answers(prefix, cache, asked, said)
    seg = model.config.seg_token_id
    h_seg = torch.cat([answer.states[[k for k, token in enumerate(answer.ids) if token == seg]] for answer in answers])
    masks = [union(drawn.masks[list(target)]) for question in questions for target in question.targets]
    embeddings = model.embed_masks_image(processor.mask_pixels(image)[None])
    targets = torch.from_numpy(np.stack(masks).astype(np.uint8))
    return SceneBatch(h_seg, model.similarity(h_seg, h_img), embeddings, processor.frame(image), targets)


def begin(model: ReadModel) -> None:
    """The plain mask decoder, a projection drawn anew, and nothing else that learns."""
    model.requires_grad_(False)
    weights = load_file(EMBEDDED / ORIGINAL_SAM_DECODER)
    model.sam.mask_decoder.load_state_dict(
        {name.removeprefix("mask_decoder."): w.float() for name, w in weights.items()}
    )
    for layer in model.seg_projection:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    model.seg_projection.requires_grad_(True)
    model.sam.mask_decoder.requires_grad_(True)


def losses(model: ReadModel, lessons: list[SceneBatch], prompt: Prompt) -> Tensor:
    """2 BCE + 0.5 DICE of the masks of some scenes, by the model's own way from states to masks."""
    images = torch.cat([torch.full((len(lesson.h_seg),), k) for k, lesson in enumerate(lessons)])
    h_seg, scores = (torch.cat([getattr(lesson, name) for lesson in lessons]) for name in ("h_seg", "scores"))
    embeddings, frames = torch.cat([lesson.embeddings for lesson in lessons]), [lesson.frame for lesson in lessons]
    _, low_res = model.decode_masks(h_seg, scores, images, embeddings, frames, prompt=prompt)
    logits = [frames[k].masks_to_image(low[None])[0] for k, low in zip(images.tolist(), low_res, strict=True)]
    bce, dice = mask_losses(logits, [mask for lesson in lessons for mask in lesson.masks])
    return model.config.bce_loss_weight * bce + model.config.dice_loss_weight * dice


def train(model: ReadModel, lessons: list[SceneBatch], prompt: Prompt, steps: int) -> list[float]:
    """AdamW, warm-up and linear decay; returns the loss of each step."""
    projection, decoder = list(model.seg_projection.parameters()), list(model.sam.mask_decoder.parameters())
    groups = [{"params": projection, "lr": PROJECTION_RATE}, {"params": decoder, "lr": DECODER_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps))
    rng, found = np.random.default_rng(0), []
    for _ in track(range(steps), f"training with {prompt}", transient=True):
        chosen = [lessons[k] for k in rng.integers(len(lessons), size=SCENES_A_STEP)]
        loss = losses(model, chosen, prompt)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*projection, *decoder], 1.0)
        optimizer.step()
        rate.step()
        found.append(loss.item())
    return found


def main(
    out: Annotated[Path, typer.Option(help="The model's folder, which must not exist.")] = Path("runs/lisa"),
    prompt: Annotated[Prompt, typer.Option(help="What SAM learns from.")] = "seg",
    scenes: Annotated[int, typer.Option("--count", min=1, help="Scenes to learn from.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help=f"Of {SCENES_A_STEP} scenes each.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the projection's first weights.")] = 0,
) -> None:
    if out.exists():
        raise ReadsegError(f"{out} is there already: remove it, or choose another --out")
    segmenter = Segmenter.from_pretrained(device="cpu")
    torch.manual_seed(seed)
    segmenter.model.config.prompt = prompt
    begin(segmenter.model)
    numbers = track(range(FIRST_SEED, FIRST_SEED + scenes), "states of the language model", transient=True)
    lessons = [lesson for number in numbers if (lesson := study(segmenter, number)) is not None]
    found = train(segmenter.model, lessons, prompt, steps)
    with atomic_write(out, new=True) as place:
        segmenter.model.save_pretrained(place)
        segmenter.processor.save_pretrained(place)
    last = found[-50:]
    Console().print(f"{out}: loss {found[0]:.3f} at first, {sum(last) / len(last):.3f} over the last {len(last)} steps")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    run(app)
