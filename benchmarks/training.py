"""What packing and the cache of frozen features save in a step of training on data sets.

    python benchmarks/training.py
    python benchmarks/training.py --images 4 --rounds 7

The embedded model trains on miniatures, made on the way (needs the extra "scenes"); one thread, float32. Four stages do
the same batches in turn, round after round: with and without packing, with and without the cache, which is warm. The
losses of all four are compared: none of it may change them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from readseg.checkpoints.adapters import EMBEDDED_NAME, Base, open_base
from readseg.miniatures import write_miniatures
from readseg.training.config import FinetuningStageConfig
from readseg.training.stages.finetuning import FinetuningStage

WAYS = {
    "neither": {"pack": False, "cache": False},
    "packed": {"pack": True, "cache": False},
    "cached": {"pack": False, "cache": True},
    "packed and cached": {"pack": True, "cache": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a step of training with packing and cached features, and without."
    )
    parser.add_argument("--images", type=int, default=4, help="images in a batch")
    parser.add_argument("--questions", type=int, default=3, help="the most questions about an image")
    parser.add_argument("--rounds", type=int, default=5, help="how often each batch is timed; the least time counts")
    parser.add_argument("--batches", type=int, default=4, help="different batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_miniatures(root / "mini")
        stages = {name: _stage(root, arguments, way) for name, way in WAYS.items()}
        numbers = range(arguments.batches)
        losses = {name: [_step(stage, number)[1] for number in numbers] for name, stage in stages.items()}
        times: dict[str, list[float]] = {name: [] for name in stages}
        for number in numbers:
            rounds: dict[str, list[float]] = {name: [] for name in stages}
            for _ in range(arguments.rounds):
                for name, stage in stages.items():
                    rounds[name].append(_step(stage, number)[0])
            for name, found in rounds.items():
                times[name].append(min(found))
    plain = statistics.fmean(times["neither"])
    print(f"batches of {arguments.images} images, up to {arguments.questions} questions each; 1 thread")
    for name, found in times.items():
        away = max(abs(a - b) / abs(b) for a, b in zip(losses[name], losses["neither"], strict=True))
        mean = statistics.fmean(found)
        print(f"{name:>18}  {mean * 1e3:7.0f} ms a step  {plain / mean:5.2f}x  largest difference of a loss {away:.0e}")


def _stage(root: Path, arguments: argparse.Namespace, way: dict[str, bool]) -> FinetuningStage:
    options = FinetuningStageConfig(
        kind="mixture",
        name="step",
        start=EMBEDDED_NAME,
        ratio="10:10:2:3:1:10",
        steps=1,
        images_per_step=arguments.images,
        questions=arguments.questions,
        learning_rate=1e-4,
        precision="fp32",
        gradient_checkpointing=False,
        **way,
    )
    base = Base(EMBEDDED_NAME)
    return FinetuningStage(open_base(base), base, options, 0, root / "mini", root / "cache")


def _step(stage: FinetuningStage, number: int) -> tuple[float, float]:
    """Seconds of forward and backward, the reading of the batch included; and the loss."""
    stage.zero_grad()
    start = time.perf_counter()
    loss = stage(stage.batch(number, 0, 1))["loss"]
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())


if __name__ == "__main__":
    main()
