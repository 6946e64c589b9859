"""Draws the demo's example pictures and their truth; run once, the results are stored beside this file.

    python examples/make_examples.py

The scenes have seeds that neither training nor the test set uses. They were chosen for being nice to look at and for
working: see the model card for how often it works.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from readseg.scenes.render import make_scene, render

HERE = Path(__file__).resolve().parent

# name of the picture, seed of the scene, question, class of the thing it means (None: it is not there)
EXAMPLES = (
    ("category", 900_022, "segment the tulip", "tulip"),
    ("reasoning", 900_028, "the bird that can talk", "parrot"),
    ("refusal", 900_003, "where is the car?", None),
)


def main() -> None:
    entries = []
    for name, seed, query, meant in EXAMPLES:
        scene = make_scene(seed)
        drawn = render(scene)
        Image.fromarray(drawn.image).save(HERE / f"{name}.png")
        names = [thing.name for thing in scene.objects]
        truth = None
        if meant is not None:
            truth = f"{name}_truth.png"
            Image.fromarray(drawn.masks[names.index(meant)]).convert("L").save(HERE / truth, optimize=True)
        entries.append({"image": f"{name}.png", "query": query, "expected": truth})
    (HERE / "examples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
