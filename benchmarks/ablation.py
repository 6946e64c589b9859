"""Table 8's grid with its shared answers beside one evaluation for each cell of the grid, timed in one run.

    python benchmarks/ablation.py [--model FOLDER] [--scenes 30] [--threads 1]

Both ask the same questions about the same drawn scenes and keep nothing on disk; loading the model is left out of
both. Time is the processor's, of this process: other work on the machine changes it little. Needs the extra "scenes".
Exits with 1 if a single answer or mask differs, or if the shared answers are not at least twice as fast.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from readseg import Segmenter
from readseg.analysis.studies.ablation import ablate, variants
from readseg.evaluation.predictions import Prediction
from readseg.evaluation.run import model_system, run_systems
from readseg.evaluation.scenes import SceneSet, scene_benchmark

LEAST_SPEEDUP = 2.0

Found = TypeVar("Found")


def timed(call: Callable[[], Found]) -> tuple[Found, float, float]:
    """What a call returns, its seconds of processor time, and those of the clock."""
    processor, clock = time.process_time(), time.perf_counter()
    found = call()
    return found, time.process_time() - processor, time.perf_counter() - clock


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; by default the embedded model")
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.scenes < 1 or options.threads < 1:
        parser.error("--scenes and --threads must be at least 1")

    torch.set_num_threads(options.threads)
    loaded = Segmenter.from_pretrained(options.model, device="cpu")
    benchmark = scene_benchmark(SceneSet(scenes=options.scenes))
    grid = variants("points", loaded.model.config)
    loaded.segment(benchmark[0].image, "the cow")  # what only a first call pays for does not count

    def alone(key: str) -> tuple[Sequence[Prediction], float, float]:
        variant = next(variant for variant in grid if variant.key == key)
        fresh = Segmenter(loaded.model, loaded.processor)
        system = model_system(fresh, benchmark, prompt=variant.prompt, points=variant.points)
        return timed(lambda: run_systems([system], benchmark)[system.name].outcomes)

    fresh = Segmenter(loaded.model, loaded.processor)
    shared, processor, clock = timed(lambda: ablate(fresh, benchmark, grid, name="model"))
    single = {variant.key: alone(variant.key) for variant in grid}
    wrong = sum(
        a != b
        for key, (predictions, _, _) in single.items()
        for a, b in zip(predictions, shared.results[key].outcomes, strict=True)
    )
    masks = sum(len(prediction.masks) for result in shared.results.values() for prediction in result.outcomes)

    cost = [seconds for _, seconds, _ in single.values()]
    speedup = sum(cost) / processor
    print(f"{options.model or 'the embedded model'} on {options.scenes} scenes, {len(grid)} settings,", end=" ")
    print(f"{options.threads} thread(s)")
    print(f"{'':<44}{'processor':>11}{'clock':>11}")
    print(f"{'all settings, answers shared':<44}{processor:>9.1f} s{clock:>9.1f} s")
    print(f"{'one evaluation for each setting':<44}{sum(cost):>9.1f} s{sum(c for _, _, c in single.values()):>9.1f} s")
    print(f"{'one evaluation, the mean':<44}{sum(cost) / len(cost):>9.1f} s")
    print(f"{speedup:.2f} times as fast (at least {LEAST_SPEEDUP:g} wanted);", end=" ")
    print(f"{wrong} of {sum(len(p) for p, _, _ in single.values())} answers differ; {masks} masks were compared.")
    return 0 if speedup >= LEAST_SPEEDUP and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
