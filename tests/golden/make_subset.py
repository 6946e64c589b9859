"""Cuts the part of the reference values that tests/golden keeps: copied from the reference, never computed.

    PYTHONPATH=tests python -m golden.make_subset REFERENCE

A_sasp: of each kind of map, downsampling and cropping the smallest case; of the maps the smallest of
each variant; of the similarities the first 64 patches, of which the others are independent.
B_prompt: all sparse prompts of few points, the logits that are not too many, the coordinates and the smaller cases of
post-processing. Its weights are part C's.
C_read: the checkpoint with its tower; of each kind of case the smallest one, the errors of those that crash, and all
generations; the two smallest images and what the models see of them; the LoRA weights before and after their merge.
D_data: the conversations and their ids, masks and scores, and some pixels of two images.
E_other: the checkpoints of the other families and their cases.

Large tensors are kept as slices, named as the reference names its own. Of weights the values that take no part in a
case are zeros: rows of tokens that no text of the part has, and of part E the heads of the masks that are not used.
What is large is packed (packing.py), and of equal files one is kept (copies.json).
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from golden.packing import COPIES, PACKED, SHARDS, pack

GOLDEN = Path(__file__).parent
PARTS = ("A_sasp", "B_prompt", "C_read", "D_data", "E_other")
PATCHES = 64
MOST_TOKENS = 40
MOST_PIXELS = 15_000
MOST_LOGITS = 50_000
MOST_TEXT = 10_000
IMAGES = 2
EVERY = 4
PIXELS_EVERY = 6
Case = dict[str, Any]

TEACHER_FORCED = ("C1_img1", "C2_all_seg", "C2_both_none", "C2_img0_none", "C2_two_seg_row")
GENERATED = ("C3_a", "C3_b", "C3_c", "C3_d")
GENERATED_IDS = ("input_ids", "output_ids", "pred_mask")
GENERATED_VALUES = ("hidden_last", "similarity.*", "points.*", "labels.*", "prompt.*.text_embeds", "decoder.*.low_res")
# Of part C the states of whole rows, of part E those of some positions of all rows.
ROWS_OF_STATES = {"C1_img1": slice(None, None, 2), "C2_all_seg": slice(None, None, 3)}
ROW_OF_TWO_SEG = slice(1, 2)
ALL, FOURTH, EIGHTH = slice(None), slice(None, None, 4), slice(None, None, 8)
SLICES = {
    "clip_projected": (ALL, FOURTH),
    "decoder.*.low_res": (ALL, ALL, EIGHTH, EIGHTH),
    "prompt.*.sparse": (ALL, ALL, EIGHTH),
    "pred_masks*": (ALL, FOURTH, FOURTH),
    "*.clip_cropped_rgb_u8": (FOURTH, FOURTH),
}
UNUSED_HEADS = ("*.mask_decoder.output_hypernetworks_mlps.[123].*", "*.mask_decoder.iou_prediction_head.*")
# These two need all rows of the text head.
TEXT_LOSSES = ("loss", "ce_loss")


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


def write_index(target: Path, index: Case) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


# -- whole models ------------------------------------------------------------------------------------------------------


class Kept:
    """Files of the reference that are kept whole, each content once."""

    def __init__(self, reference: Path) -> None:
        self.reference = reference
        self.names: dict[bytes, str] = {}
        self.copies: dict[str, str] = {}

    def keep(self, folder: str, *names: str) -> None:
        for name in (f"{folder}/{name}" for name in names):
            content = (self.reference / name).read_bytes()
            first = self.names.setdefault(content, name)
            if first != name:
                self.copies[name] = first
            elif name.endswith(".safetensors") or (name.endswith(".json") and len(content) > MOST_TEXT):
                write_packed(GOLDEN / name, content)
            else:
                (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
                (GOLDEN / name).write_bytes(content)

    def keep_folder(self, folder: str, *but: str) -> None:
        names = sorted(path.name for path in (self.reference / folder).iterdir())
        self.keep(folder, *(name for name in names if name not in but))

    def write_copies(self) -> None:
        (GOLDEN / COPIES).write_text(json.dumps(self.copies, indent=1) + "\n", encoding="utf-8")


def write_packed(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(target.name + PACKED).write_bytes(pack(content, target.suffix))


def sliced(tensors: dict[str, Tensor], states: tuple[slice, ...] = (ALL,)) -> dict[str, Tensor]:
    """What is kept of a case's tensors, under the names of slices."""
    kept = {}
    for key, value in tensors.items():
        slices = next((slices for pattern, slices in SLICES.items() if fnmatchcase(key, pattern)), (ALL,))
        slices = states if key == "hidden_last" else slices
        if "_sub[" in key or all(part == ALL for part in slices):
            kept[key] = value
        else:
            kept[f"{key}_sub[{', '.join(map(written, slices))}]"] = value[slices].contiguous()
    return kept


def written(part: slice) -> str:
    """A slice as it is written in Python."""
    ends = ":".join("" if end is None else str(end) for end in (part.start, part.stop))
    return ends if part.step is None else f"{ends}:{part.step}"


def write_cut_weights(folder: Path, target: Path, zeroed: dict[str, Tensor]) -> None:
    """A checkpoint's weights without those rows of a tensor that are `zeroed`."""
    weights = load_file(folder / "model.safetensors")
    for name, rows in zeroed.items():
        weights[name][rows] = 0
    write_packed(target / "model.safetensors", save(weights, metadata={"format": "pt"}))


def unused_rows(count: int, tensors: Iterable[dict[str, Tensor]]) -> Tensor:
    """Which tokens no text of these cases has."""
    unused = torch.ones(count, dtype=torch.bool)
    for values in tensors:
        for key, ids in values.items():
            if "_ids" in key:
                unused[ids[(ids >= 0) & (ids < count)]] = False
    return unused


def cut_read(reference: Path, files: Kept) -> None:
    """Part C: the model, its cases, images, LoRA weights and the tokenizer."""
    source, target = reference / "C_read", GOLDEN / "C_read"
    whole = json.loads((source / "index.json").read_text(encoding="utf-8"))
    corrected = json.loads((source / "corrected.json").read_text(encoding="utf-8"))
    crashing = [name for name, record in whole.items() if record.get("status") == "error"]
    sizes = whole["images"]["sizes"]
    images = sorted(sizes, key=lambda name: math.prod(sizes[name]["original_hw"]))[:IMAGES]
    index = {name: record for name, record in whole.items() if name in {*TEACHER_FORCED, *crashing, *GENERATED}}
    index["images"] = {**whole["images"], "sizes": {name: sizes[name] for name in sorted(images)}}
    write_index(target, index)
    text = json.dumps({name: corrected[name] for name in TEACHER_FORCED if name in corrected}, indent=1)
    (target / "corrected.json").write_text(text + "\n", encoding="utf-8")

    cases = {path.stem: load_file(path) for path in sorted(source.glob("C[123]_*.safetensors"))}
    for name, tensors in cases.items():
        if name in GENERATED:
            wanted = GENERATED_IDS if name != GENERATED[0] else (*GENERATED_IDS, *GENERATED_VALUES)
            kept = {key: value for key, value in tensors.items() if any(fnmatchcase(key, kind) for kind in wanted)}
            kept = sliced(kept)
        elif name.removesuffix(".corrected") in TEACHER_FORCED:
            kept = sliced(tensors, (ROWS_OF_STATES.get(name, ROW_OF_TWO_SEG),))
        else:
            continue
        write_packed(target / f"{name}.safetensors", save(kept))

    pixels = {}
    for key, value in load_file(source / "images.safetensors").items():
        name, _, what = key.partition(".")
        if name not in images:
            continue
        if what == "sam_resized_rgb_u8":
            pixels[f"{key}_sub[::{EVERY}, ::{EVERY}]"] = value[::EVERY, ::EVERY].contiguous()
        else:
            pixels[key] = value
    save_file(pixels, target / "images.safetensors")
    shutil.copyfile(source / "lora_merge.safetensors", target / "lora_merge.safetensors")
    files.keep("C_read", "extra.json", "extra2.json", "premerge_keys.json", "state_dict_keys.json")
    files.keep_folder("C_read/clip336")
    files.keep_folder("C_read/ckpt", "model.safetensors")
    # The shards are made of the whole file, as their index says.
    shards = set(json.loads((source / "ckpt_sharded" / SHARDS).read_text(encoding="utf-8"))["weight_map"].values())
    files.keep_folder("C_read/ckpt_sharded", *shards)
    unused = unused_rows(whole_rows(source), cases.values())
    write_cut_weights(source / "ckpt", target / "ckpt", {"model.embed_tokens.weight": unused})


def whole_rows(source: Path) -> int:
    return json.loads((source / "ckpt" / "config.json").read_text(encoding="utf-8"))["vocab_size"]


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


def cut_families(reference: Path, files: Kept) -> None:
    """Part E: each family's model and its cases; of the losses those that need no text logits."""
    for source in sorted(place for place in (reference / "E_other").iterdir() if place.is_dir()):
        name, target = source.name, GOLDEN / "E_other" / source.name
        index = json.loads((source / "index.json").read_text(encoding="utf-8"))
        losses = index["train"]["losses"]
        index["train"]["losses"] = {key: value for key, value in losses.items() if key not in TEXT_LOSSES}
        index["train"]["left_out"] = list(TEXT_LOSSES)
        write_index(target, index)
        tensors = load_file(source / "vectors.safetensors")
        write_packed(target / "vectors.safetensors", save(sliced(tensors, (ALL, FOURTH))))
        files.keep_folder(f"E_other/{name}/ckpt", "model.safetensors")
        for tower in sorted(source.glob("clip*")):
            files.keep_folder(f"E_other/{name}/{tower.name}")

        weights = load_file(source / "ckpt" / "model.safetensors")
        unused = unused_rows(whole_rows(source), [tensors])
        silent = unused.clone()
        silent[most_likely(index, tensors, weights["lm_head.weight"])] = False
        zeroed = {"model.embed_tokens.weight": unused, "lm_head.weight": silent}
        for key, value in weights.items():
            if any(fnmatchcase(key, head) for head in UNUSED_HEADS):
                zeroed[key] = torch.ones(len(value), dtype=torch.bool)
        write_cut_weights(source / "ckpt", target / "ckpt", zeroed)


def most_likely(index: Case, tensors: dict[str, Tensor], head: Tensor) -> list[int]:
    """The tokens that win where a family's answers are asked for the most likely one: no row of zeros may win there."""
    if "[REJ]" not in index["added_tokens"]:
        return []
    ids, asked = tensors["input_ids"], [index["added_tokens"][token] for token in ("[SEG]", "[REJ]")]
    winners = []
    for row, place in torch.isin(ids, torch.tensor(asked)).nonzero().tolist():
        logits = head.float() @ tensors["hidden_last"][row, place + index["image_tokens"] - 2]
        if logits.max() <= 0:
            raise ValueError(f"row {row}, token {place}: rows of lm_head that are left out would win")
        winners.append(int(logits.argmax()))
    return winners


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m golden.make_subset REFERENCE (the folder with reference values)")
    whole = Path(sys.argv[1])
    for part in PARTS:
        shutil.rmtree(GOLDEN / part, ignore_errors=True)
    kept = Kept(whole)
    cut_sasp(whole)
    cut_prompts(whole)
    cut_read(whole, kept)
    cut_data(whole)
    cut_data_values(whole)
    cut_families(whole, kept)
    kept.keep(".", "classes.json")
    kept.write_copies()
