"""Eight questions about one image beside one question, timed in one run.

    python benchmarks/queries.py [--model FOLDER] [--repeats 5] [--threads 1]

What does not depend on the question is computed once for an image, and the questions are decoded as a batch. Every
timed call sees an image of new content, so nothing that was kept from an earlier one helps: the things of one drawn
scene before backgrounds of different seeds, and the same eight true questions about them. Needs the extra "scenes".

Also tells the time from a new process to its first answer. Exits with 1 if eight questions cost more than 3 times
one, or if their answers or masks are not those of eight single calls.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from readseg import Segmentation, Segmenter
from readseg.scenes.questions import ask
from readseg.scenes.render import Scene, make_scene, render

QUESTIONS = 8
MOST_RATIO = 3.0
FIRST_SEED = 700_000  # neither a scene of training nor one of the test set

FIRST_ANSWER = """
import sys
from readseg import Segmenter
Segmenter.from_pretrained(sys.argv[3] if len(sys.argv) > 3 else None).segment(sys.argv[1], sys.argv[2])
"""


def scene_with_questions() -> tuple[Scene, list[str]]:
    """The first scene about which eight different questions have a mask as their answer."""
    for seed in count(FIRST_SEED):
        scene = make_scene(seed)
        drawn = render(scene)
        rng = np.random.default_rng(seed)
        asked = ask(scene, drawn.areas, drawn.boxes, rng, count=2 * QUESTIONS, false_premise_rate=0, text_only_rate=0)
        questions = list(dict.fromkeys(question.question for question in asked if question.targets))
        if len(questions) >= QUESTIONS:
            return scene, questions[:QUESTIONS]
    raise AssertionError("unreachable: seeds do not end")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def same(left: Segmentation, right: Segmentation) -> bool:
    """Whether two results say the same words and mark the same pixels."""
    said = left.answer == right.answer and left.present == right.present
    return said and np.array_equal(left.masks, right.masks)


def cold_start(image: Image.Image, question: str, model: str | None, threads: int, repeats: int) -> float:
    """Median time of a new process that imports, loads, answers one question and ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.png"
        image.save(path)
        command = [sys.executable, "-c", FIRST_ANSWER, str(path), question, *([model] if model else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = [seconds(lambda: subprocess.run(command, env=environment, check=True)) for _ in range(repeats)]
    return statistics.median(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; by default the embedded model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")

    torch.set_num_threads(options.threads)
    scene, questions = scene_with_questions()
    backgrounds = count()

    def fresh() -> Image.Image:
        return Image.fromarray(render(dataclasses.replace(scene, seed=next(backgrounds))).image)

    segmenter = Segmenter.from_pretrained(options.model)
    segmenter.segment(fresh(), questions)  # what only a first call pays for does not count
    one, eight, wrong, masks = [], [], 0, 0
    for _ in range(options.repeats):
        for question in questions:
            image = fresh()
            one.append(seconds(lambda i=image, q=question: segmenter.segment(i, q)))
        image = fresh()
        together: list[Segmentation] = []
        eight.append(seconds(lambda i=image, kept=together: kept.extend(segmenter.segment(i, questions))))
        # A segmenter of its own, so that the single calls share nothing with the batch but the weights.
        alone = Segmenter(segmenter.model, segmenter.processor)
        wrong += sum(not same(alone.segment(image, q), r) for q, r in zip(questions, together, strict=True))
        masks += sum(len(result.masks) for result in together)

    single, batch = statistics.median(one), statistics.median(eight)
    ratio, total = batch / single, options.repeats * QUESTIONS
    start = cold_start(fresh(), questions[0], options.model, options.threads, min(3, options.repeats))
    print(f"{options.model or 'the embedded model'} on {segmenter.model.device}, {options.threads} thread(s);", end=" ")
    print(f"image {scene.width} x {scene.height}, medians of {options.repeats} repetitions")
    print(f"{'':<44}{'all':>9}{'a question':>13}")
    print(f"{'one question on a new image':<44}{single:>7.3f} s{single:>11.3f} s")
    print(f"{f'{QUESTIONS} questions on a new image, one call':<44}{batch:>7.3f} s{batch / QUESTIONS:>11.3f} s")
    print(f"{'a new process: import, load, first answer':<44}{start:>7.3f} s")
    print(f"{QUESTIONS} questions cost {ratio:.2f} times one (at most {MOST_RATIO:g} wanted);", end=" ")
    print(f"{wrong} of {total} results differ from single calls; {masks} masks were compared.")
    return 0 if ratio <= MOST_RATIO and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
