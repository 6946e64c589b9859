"""Cuts part B of the reference values for tests/golden, in the same format.

    python tests/golden/make_subset_b.py REFERENCE

Kept are the weights of the prompt encoder, all sparse prompts of few points, the coordinates and the smaller cases of
post-processing. The mask decoder's weights are too large for a repository: its parity is tested with the whole folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent
MOST_TOKENS = 40
MOST_PIXELS = 15_000
PROMPT_ENCODER = "model.visual_model.prompt_encoder."


def cut_prompts(reference: Path) -> None:
    """Part B."""
    source, target = reference / "B_prompt", GOLDEN / "B_prompt"
    target.mkdir(exist_ok=True)
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    tensors = load_file(source / "vectors.safetensors")

    def kept(name: str) -> bool:
        group, _, rest = name.partition(".")
        if group == "post":
            return tensors[f"post.{rest.split('.')[0]}.out"][:, 0].numel() <= MOST_PIXELS
        if rest in ("sparse", "points", "labels", "text", "boxes"):
            prompts = tensors.get(f"{group}.sparse")
            return prompts is None or prompts.shape[1] <= MOST_TOKENS
        return group == "apply_coords" or name.startswith("dense_pe")

    # A case that is an error needs its input; one whose prompts are left out is no case.
    index["cases"] = [case for case in index["cases"] if case["status"] != "ok" or kept(f"{case['key']}.sparse")]
    index["postprocess"] = [case for case in index["postprocess"] if "i" in case and kept(f"post.{case['i']}.out")]
    save_file({name: value for name, value in tensors.items() if kept(name)}, target / "vectors.safetensors")
    (target / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    weights = Path(index["weights"].split(",")[0])
    (GOLDEN / weights).parent.mkdir(parents=True, exist_ok=True)
    encoder = {name: value for name, value in load_file(reference / weights).items() if name.startswith(PROMPT_ENCODER)}
    save_file(encoder, GOLDEN / weights)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: python {sys.argv[0]} REFERENCE (the folder with reference values)")
    cut_prompts(Path(sys.argv[1]))
