"""DtoC on an attention map: moving where a ViT attends, by gradients through points.

The patches of an object A attend to A. The cells that they attend to most are points. A chosen cell has no gradient;
its continuous place has one (discrete to continuous on the attention a itself, since softmax(log a) = a):

    w(q) = exp(-|q - p|^2 / bandwidth^2) a(q),    p' = sum_q w(q) q / sum_q w(q),    loss = mean |p' - centre of B|

So the wish that the points lie on B reaches what makes the attention: here one vector, added to the queries of A's
patches in one layer. A wide bandwidth makes it a move; the paper's, of one pixel, is a path for gradients. Controls:
the points as chosen, which give no gradient, and a random vector of the same length.

    python examples/edit_attention.py                    # the embedded model's vision tower on 30 drawn scenes
    python examples/edit_attention.py --model FOLDER     # a ViT of transformers: CLIP, SigLIP, DINO, DeiT, BEiT, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from readseg import ReadsegError, Segmenter
from readseg.cli.errors import run
from readseg.core.io import atomic_write
from readseg.core.masks import iou
from readseg.core.sasp import discrete_to_continuous_on_map, select_extremes
from readseg.core.stats import estimate
from readseg.core.token_grid import cell_coverage
from readseg.evaluation.benchmarks import FIRST_TEST_SEED
from readseg.model.processing import CLIP_MEAN, CLIP_STD
from readseg.scenes.render import make_scene, render

POINTS, RATE, RANDOM = 8, 0.3, "random vector"


class Vit:
    """A frozen tower whose last N = n * n tokens are patches, and the layer of attention that is edited."""

    def __init__(self, model: Any, mean: Any, std: Any, layer: int) -> None:
        self.tower = getattr(model, "vision_model", model).eval().requires_grad_(False)
        self.tower.set_attn_implementation("eager")  # the faster ones never hold the map
        layers = [module for module in self.tower.modules() if hasattr(module, "q_proj")]
        if not -len(layers) <= layer < len(layers):
            raise ReadsegError(f"layer {layer}: the model has {len(layers)} layers of attention with a q_proj")
        self.attention, self.mean, self.std = layers[layer], mean, std
        self.n = self.tower.config.image_size // self.tower.config.patch_size


class Pair(NamedTuple):
    """A drawn scene and the two largest objects whose names occur once in it, A and B.

    pixels: (1, 3, s, s). masks: (2, H, W). cover: (2, N), shares of patches. patches: A's. centre: (2,), B's, in cells.
    """

    image: Image.Image
    pixels: Tensor
    names: list[str]
    masks: np.ndarray
    cover: Tensor
    patches: Tensor
    centre: Tensor


def pairs(vit: Vit) -> Iterator[Pair]:
    for scene in map(make_scene, count(FIRST_TEST_SEED)):
        drawn, names = render(scene), [thing.name for thing in scene.objects]
        single = [i for i in np.argsort(-drawn.areas, kind="stable") if names.count(names[i]) == 1][:2]
        if len(single) == 2:
            image, masks = Image.fromarray(drawn.image), drawn.masks[single]
            square = np.asarray(image.resize((vit.tower.config.image_size,) * 2, Image.Resampling.BICUBIC)) / 255
            pixels = torch.from_numpy((square - vit.mean) / vit.std).permute(2, 0, 1)[None].float()
            cover = torch.from_numpy(cell_coverage(masks, vit.n)).flatten(1)
            patches = (cover[0] >= cover[0].max().clamp(max=0.5)).nonzero()[:, 0]
            centre = torch.tensor((np.argwhere(masks[1]).mean(0)[::-1] + 0.5) * vit.n / image.size - 0.5).float()
            yield Pair(image, pixels, [names[i] for i in single], masks, cover, patches, centre)


def look(vit: Vit, pair: Pair, offset: Tensor, segmenter: Segmenter | None = None) -> tuple[Any, ...]:
    """The tower with `offset` (d,) added to the queries of A's patches, and a segmenter that sees through it.
    Returns where A's patches attend (N,), of sum 1, the points there (1, P, 2), all states (N, d), masks of A and B.
    """
    attentions, answers = [], []

    def add(_: Any, __: Any, queries: Tensor) -> Tensor:
        places = pair.patches + queries.shape[1] - vit.n**2
        return queries.index_add(1, places, offset.expand(1, len(places), -1))

    def keep(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> None:
        rows = output[1][0, :, pair.patches - vit.n**2, -(vit.n**2) :].mean((0, 1))  # over heads and A's patches
        attentions.append(rows / rows.sum())

    with vit.attention.q_proj.register_forward_hook(add), vit.attention.register_forward_hook(keep):
        states = vit.tower(pixel_values=pair.pixels).last_hidden_state[0, -(vit.n**2) :]
        if segmenter is not None:  # a new one remembers no image as it was seen before
            asked = Segmenter(segmenter.model, segmenter.processor)
            answers = asked.segment(pair.image, [f"where is the {name}?" for name in pair.names])
    points = select_extremes(attentions[0].detach()[None], (vit.n, vit.n), count=POINTS).xy[:, :POINTS]
    return attentions[0], points, states, [answer.mask for answer in answers]


def move(vit: Vit, pair: Pair, steps: int, bandwidth: float, *, dtoc: bool = True) -> list[Tensor]:
    """Brings the points to B's centre; returns the offset before the first step of Adam, 0, and after each."""
    offset = vit.attention.q_proj.weight.new_zeros(vit.attention.q_proj.out_features).requires_grad_()
    optimizer, path = torch.optim.Adam([offset], lr=RATE), [offset.detach().clone()]
    for _ in range(steps):
        attention, xy, *_ = look(vit, pair, offset)
        if dtoc:
            log_map = attention.clamp(min=1e-12).log().view(1, vit.n, vit.n)
            xy = discrete_to_continuous_on_map(xy, log_map, bandwidth=bandwidth, radius=vit.n)
        loss = (xy - pair.centre).norm(dim=-1).mean()
        if loss.requires_grad:  # chosen cells leave nothing to follow
            (offset.grad,) = torch.autograd.grad(loss, offset)
            optimizer.step()
        path.append(offset.detach().clone())
    return path


@torch.no_grad()
def measure(vit: Vit, pair: Pair, offset: Tensor, segmenter: Segmenter | None) -> dict[str, float]:
    attention, xy, states, masks = look(vit, pair, offset, segmenter)
    before, state = look(vit, pair, torch.zeros_like(offset))[2], states[pair.patches].mean(0)
    like_a, like_b = (float(torch.cosine_similarity(state, cover @ before, dim=0)) for cover in pair.cover)
    cells = (xy[0, :, 1] * vit.n + xy[0, :, 0]).long()
    return {
        "attention on A": float(pair.cover[0] @ attention),
        "attention on B": float(pair.cover[1] @ attention),
        "points on B": float((pair.cover[1, cells] > 0.5).float().mean()),
        "points to B, patches": float((xy - pair.centre).norm(dim=-1).mean()),
        "like B - like A": like_b - like_a,
    } | {f"IoU of {'AB'[k]}, asked": iou(mask, pair.masks[k]) for k, mask in enumerate(masks)}


def draw(vit: Vit, pair: Pair, offsets: dict[str, Tensor]) -> Any:
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), dpi=100, layout="constrained")
    extent = (0, pair.image.width, pair.image.height, 0)
    for axis, (title, offset) in zip(axes.flat, ({"A and B": None} | offsets).items(), strict=True):
        axis.imshow(pair.image if offset is None else pair.image.convert("L"), cmap="gray", extent=extent)
        axis.set(title=title, xticks=[], yticks=[])
        if offset is not None:
            attention, points, *_ = look(vit, pair, offset)
            shown = axis.imshow(attention.view(vit.n, -1).numpy(), alpha=0.7, extent=extent, vmin=0, vmax=0.2)
            xy = (points[0].numpy() + 0.5) * pair.image.size / vit.n
            axis.scatter(*xy.T, c="#0072B2", edgecolors="white", s=36)
        for letter, mask, colour in zip("AB", pair.masks, ("#E69F00", "#CC79A7"), strict=True):
            axis.contour(mask, levels=[0.5], colors=[colour])
            axis.text(*np.argwhere(mask).min(0)[::-1], letter, color="white", weight="bold", backgroundcolor=colour)
    figure.colorbar(shown, ax=axes, shrink=0.6, extend="max", label="share of the attention of A's patches")
    return figure


def main(
    model: Annotated[str | None, typer.Option(help="A ViT, folder or hub id; by default the embedded model's.")] = None,
    layer: Annotated[int, typer.Option(help="Whose queries are edited; -1 is the last.")] = -2,
    scenes: Annotated[int, typer.Option("--count", min=1, help="Scenes to measure.")] = 30,
    steps: Annotated[int, typer.Option(min=4, help="Steps of Adam.")] = 16,
    bandwidth: Annotated[float, typer.Option(min=0.01, help="Of DtoC, in patches.")] = 4.0,
    out: Annotated[Path, typer.Option(help="The picture: the first scene.")] = Path("demo_output/edit_attention.png"),
) -> None:
    segmenter = Segmenter.from_pretrained(device="cpu") if model is None else None
    if segmenter is not None:
        vit = Vit(segmenter.model.lmm.model.vision_tower, CLIP_MEAN, CLIP_STD, layer)
    else:
        seen = AutoImageProcessor.from_pretrained(model)
        vit = Vit(AutoModel.from_pretrained(model), seen.image_mean, seen.image_std, layer)
    found, unmoved = [], 0
    for number, pair in enumerate(track(islice(pairs(vit), scenes), "scenes", total=scenes, transient=True)):
        path = move(vit, pair, steps, bandwidth)
        unmoved += not move(vit, pair, 1, bandwidth, dtoc=False)[-1].any()
        noise = torch.randn(path[-1].shape, generator=torch.Generator().manual_seed(number))
        offsets = {"before": path[0], "DtoC": path[-1], RANDOM: noise * path[-1].norm() / noise.norm()}
        found.append([measure(vit, pair, offset, segmenter) for offset in offsets.values()])
        if number == 0:
            shown = {f"step {step}": path[step] for step in (0, steps // 4, steps // 2, steps)}
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as place:
                draw(vit, pair, shown | {RANDOM: offsets[RANDOM]}).savefig(place, format="png")
                Image.open(place).quantize(128).save(place, "PNG", optimize=True)  # a third of the size
    table = Table(f"{scenes} scenes", *offsets, box=None)
    for what in found[0][0]:
        means = [estimate([row[what] for row in way]) for way in zip(*found, strict=True)]
        table.add_row(what, *(f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]" for mean in means))
    Console().print(table, f"discrete points: the offset stays 0 in {unmoved} scenes", f"picture: {out}", sep="\n")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    run(app)
