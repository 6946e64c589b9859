"""Cuts the part of the reference values that tests/golden keeps, in the same format.

    python tests/golden/make_subset.py REFERENCE

A_sasp: of each kind of map, downsampling and cropping the smallest case; of the maps the smallest of
each variant; of the similarities the first 64 patches, of which the others are independent.
B_prompt: the weights of the prompt encoder and the mask decoder, all sparse prompts of few points, the logits
that are not too many, the coordinates and the smaller cases of post-processing.
C_read: the two smallest images and what the models see of them (what is whole is kept as a slice), the LoRA weights
before and after their merge, and the tokenizer.
D_data: the conversations and their ids, masks and scores, and some pixels of two images. E_other: the prompts and
their ids, and the added tokens.

No whole model is kept: the smallest one takes 8 MB.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent
PATCHES = 64
MOST_TOKENS = 40
MOST_PIXELS = 15_000
MOST_LOGITS = 50_000
KEPT_WEIGHTS = ("model.visual_model.prompt_encoder.", "model.visual_model.mask_decoder.")
IMAGES = 2
EVERY = 4
PIXELS_EVERY = 6
Case = dict[str, Any]


def size(case: Case) -> tuple[int, int]:
    """Size of a case's padded grid, then of its image."""
    return math.prod(case.get("grid_hw", [0])), math.prod(case.get("shape", [0]))


def smallest_of_each(cases: list[Case], kind: Callable[[Case], object]) -> list[Case]:
    """One case of each kind, in the given order; records without a tensor are kept."""
    chosen: dict[object, Case] = {}
    for case in sorted(cases, key=size):
        chosen.setdefault(kind(case) if "key" in case else id(case), case)
    kept = {id(case) for case in chosen.values()}
    return [case for case in cases if id(case) in kept]


def write(source: Path, target: Path, name: str, cases: list[Case], leave_out: str | None = None) -> None:
    """Writes the tensors of some cases of one file."""
    keys = {case["key"] for case in cases if "key" in case}
    tensors = load_file(source / f"{name}.safetensors")
    kept = {key: value for key, value in tensors.items() if key.split(".")[0] in keys}
    if leave_out is not None:
        kept = {key: value for key, value in kept.items() if not key.endswith(leave_out)}
    if name == "compute_similarity_map":
        kept = {
            key: value[:, :PATCHES].contiguous() if key.endswith((".image", ".out")) else value
            for key, value in kept.items()
        }
    save_file(kept, target / f"{name}.safetensors")


def cut_sasp(reference: Path) -> None:
    """Part A."""
    source, target = reference / "A_sasp", GOLDEN / "A_sasp"
    target.mkdir(exist_ok=True)
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))

    def kind_of_points(case: Case) -> object:
        return case["kind"], case["status"], case["down_sample"], min(case.get("pad_hw", [0])) < 0

    chosen = {
        "points": smallest_of_each(index["points"], kind_of_points),
        "get_similarity_map": smallest_of_each(index["get_similarity_map"], lambda case: (case["variant"], case["n"])),
        "compute_similarity_map": index["compute_similarity_map"],
        "discrete_to_continuous": index["discrete_to_continuous"],
    }
    for case in chosen["compute_similarity_map"]:
        case["n_i"] = PATCHES
    write(source, target, "points", chosen["points"], leave_out=".origin_map")
    for name in ("get_similarity_map", "compute_similarity_map", "discrete_to_continuous"):
        write(source, target, name, chosen[name])
    minima = {cells: values[:10] for cells, values in index["float_truncation_minima"].items()}
    text = json.dumps({**chosen, "float_truncation_minima": minima, "n_cases": len(chosen["points"])})
    (target / "index.json").write_text(text + "\n", encoding="utf-8")
    equivalence = source / "window_equivalence.json"
    (target / equivalence.name).write_text(equivalence.read_text(encoding="utf-8"), encoding="utf-8")


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
        if rest.startswith("low_res") and tensors[name].numel() > MOST_LOGITS:
            return False
        if rest.startswith(("low_res", "iou")) or rest in ("sparse", "points", "labels", "text", "boxes"):
            prompts = tensors.get(f"{group}.sparse")
            return prompts is None or prompts.shape[1] <= MOST_TOKENS
        return group in ("apply_coords", "image_embeddings") or name.startswith("dense_pe")

    # A case that is an error needs its input; one whose prompts are left out is no case.
    index["cases"] = [case for case in index["cases"] if case["status"] != "ok" or kept(f"{case['key']}.sparse")]
    index["postprocess"] = [case for case in index["postprocess"] if "i" in case and kept(f"post.{case['i']}.out")]
    save_file({name: value for name, value in tensors.items() if kept(name)}, target / "vectors.safetensors")
    (target / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    weights = Path(index["weights"].split(",")[0])
    (GOLDEN / weights).parent.mkdir(parents=True, exist_ok=True)
    state = load_file(reference / weights)
    save_file({name: value for name, value in state.items() if name.startswith(KEPT_WEIGHTS)}, GOLDEN / weights)


def write_index(target: Path, index: Case) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def cut_read(reference: Path) -> None:
    """Part C: images, LoRA weights and the tokenizer; the index tells of images alone."""
    source, target = reference / "C_read", GOLDEN / "C_read"
    sizes = json.loads((source / "index.json").read_text(encoding="utf-8"))["images"]
    names = sorted(sizes["sizes"], key=lambda name: math.prod(sizes["sizes"][name]["original_hw"]))[:IMAGES]
    write_index(target, {"images": {**sizes, "sizes": {name: sizes["sizes"][name] for name in sorted(names)}}})
    kept = {}
    for key, value in load_file(source / "images.safetensors").items():
        name, _, what = key.partition(".")
        if name not in names:
            continue
        if what == "sam_resized_rgb_u8":
            kept[f"{key}_sub[::{EVERY}, ::{EVERY}]"] = value[::EVERY, ::EVERY].contiguous()
        else:
            kept[key] = value
    save_file(kept, target / "images.safetensors")
    shutil.copyfile(source / "lora_merge.safetensors", target / "lora_merge.safetensors")
    (target / "ckpt").mkdir(exist_ok=True)
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copyfile(source / "ckpt" / name, target / "ckpt" / name)


def cut_data(reference: Path) -> None:
    """Part D: the conversations."""
    source, target = reference / "D_data", GOLDEN / "D_data"
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    write_index(target, {"conversations": index["conversations"]})
    tensors = load_file(source / "data.safetensors")
    save_file({key: value for key, value in tensors.items() if key.startswith("conv.")}, target / "data.safetensors")


def cut_data_values(reference: Path) -> None:
    """Part D, after `cut_data`: masks with their files, scores, and two images with a few pixels that models see."""
    source, target = reference / "D_data", GOLDEN / "D_data"
    whole = json.loads((source / "index.json").read_text(encoding="utf-8"))
    index = json.loads((target / "index.json").read_text(encoding="utf-8"))
    left_out = ("truncation", "default_conversation_at_import", "preprocess")
    index |= {key: value for key, value in whole.items() if key not in {*left_out, *index}}
    tensors, kept = load_file(source / "data.safetensors"), load_file(target / "data.safetensors")
    groups = ("mask", "coco", "iou", "runeval")
    kept |= {key: value for key, value in tensors.items() if key.split(".")[0] in groups}
    index["preprocess"] = []
    for fact in sorted(whole["preprocess"], key=lambda fact: math.prod(fact["hw"]))[:IMAGES]:
        head, clip = f"prep.{fact['i']}", tensors[f"prep.{fact['i']}.clip"]
        step = PIXELS_EVERY * (fact["clip_shape"][-1] // clip.shape[-1])
        index["preprocess"].append({**fact, "clip_sub": f"[:, ::{step}, ::{step}]"})
        kept[f"{head}.clip"] = clip[:, ::PIXELS_EVERY, ::PIXELS_EVERY].contiguous()
        kept[f"{head}.rgb"] = tensors[f"{head}.rgb"]
        pixels = tensors[f"{head}.images_sub[:, ::8, ::8]"][:, ::4, ::4].contiguous()
        kept[f"{head}.images_sub[:, ::32, ::32]"] = pixels
    save_file(kept, target / "data.safetensors")
    write_index(target, index)
    (target / "json").mkdir(exist_ok=True)
    for path in (source / "json").iterdir():
        shutil.copyfile(path, target / "json" / path.name)


def cut_families(reference: Path) -> None:
    """Part E: the prompts of each family; their tokenizer.model is part C's."""
    for source in sorted(place for place in (reference / "E_other").iterdir() if place.is_dir()):
        target = GOLDEN / "E_other" / source.name
        index = json.loads((source / "index.json").read_text(encoding="utf-8"))
        write_index(target, {key: index[key] for key in ("prompts", "added_tokens", "seg_token_idx", "image_tokens")})
        tensors = load_file(source / "vectors.safetensors")
        kept = {key: tensors[key] for key in ("input_ids", "attention_masks")}
        save_file(kept, target / "vectors.safetensors")
        (target / "ckpt").mkdir(exist_ok=True)
        shutil.copyfile(source / "ckpt" / "added_tokens.json", target / "ckpt" / "added_tokens.json")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: python {sys.argv[0]} REFERENCE (the folder with reference values)")
    cut_sasp(Path(sys.argv[1]))
    cut_prompts(Path(sys.argv[1]))
    cut_read(Path(sys.argv[1]))
    cut_data(Path(sys.argv[1]))
    cut_data_values(Path(sys.argv[1]))
    cut_families(Path(sys.argv[1]))
