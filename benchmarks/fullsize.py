"""A READ-7B at full size: how long it takes to load, how much memory, and what one question costs.

    python benchmarks/fullsize.py --folder SCRATCH

Writes a checkpoint of random weights in the released layout (sharded .bin, bfloat16: LLaMA-7B, SAM ViT-H, and a CLIP
ViT-L/14-336 beside it), about 16 GB, and then, in a process of its own, loads it as `readseg segment` does and segments
one image. Memory is the highest resident set of that process, mapped files included. 24 GiB of memory are enough.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import torch
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, SamConfig

from readseg.checkpoints import key_mapping
from readseg.checkpoints.files import write_weights
from readseg.model.config import ReadConfig
from readseg.model.families import READ
from readseg.model.modeling import ReadModel
from readseg.model.tokenizer import LegacyTokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARD_BYTES = 9_900_000_000  # the first of two shards, as these models were released
ANSWER_TOKENS = 8


class RandomWeights(Mapping[str, Tensor]):
    """Weights that are made when they are asked for: repeats of one block of noise, and ones for norms."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = shapes
        self.block = (torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1 and name.endswith("weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        count = shape.numel()
        return self.block.repeat(-(-count // len(self.block)))[:count].view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def full_size() -> ReadConfig:
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32003, max_position_embeddings=4096, rms_norm_eps=1e-5, pad_token_id=0)  # the 7B
    lmm = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32003, image_seq_length=576)
    huge = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    }
    return ReadConfig(lmm_config=lmm, mask_config=SamConfig(vision_config=huge), conversation=READ.conversation)


def write_checkpoint(folder: Path) -> None:
    """The released layout, with a small tokenizer of its own: no released file is at hand here."""
    config = full_size()
    with torch.device("meta"):
        released = key_mapping.to_released(ReadModel(config).state_dict(), READ.mask_model)
    shapes = {n: v.shape for n, v in released.items() if not n.startswith(key_mapping.TOWER_RELEASED)}
    checkpoint = folder / "READ-7B"
    checkpoint.mkdir(parents=True)
    write_weights(RandomWeights(shapes), checkpoint, safe=False, shard_bytes=SHARD_BYTES)
    settings = key_mapping.released_settings(config, READ, "clip")
    (checkpoint / "config.json").write_text(json.dumps(settings))
    model = BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["the lantern by the door", "what is in this image? please output a mask."] * 50),
        model_writer=model,
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    added = {token: 32000 + place for place, token in enumerate(READ.added_tokens)}
    LegacyTokenizer(model.getvalue(), added).save_pretrained(checkpoint)
    torch.manual_seed(0)
    CLIPVisionModel(config.lmm_config.vision_config).half().save_pretrained(folder / "clip")


def measure(folder: Path) -> None:
    """Runs in a process of its own: load, encode, force an answer, generate one."""
    from readseg import Segmenter

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    segmenter = Segmenter.from_pretrained(folder / "READ-7B", device="cpu")
    loaded = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    weights = sum(p.nbytes for p in segmenter.model.parameters())
    numbers = sum(p.numel() for p in segmenter.model.parameters())
    print(f"{numbers / 1e9:.2f} billion weights, {weights / 1e9:.1f} GB as {segmenter.model.dtype}")
    print(f"loading: {loaded:.1f} s, peak memory {peak * 1024 / 1e9:.1f} GB, {peak * 1024 / weights:.2f} x the weights")
    image = ROOT / "examples" / "reasoning.png"
    start = time.perf_counter()
    result = segmenter.segment(image, "the lantern", force=True)
    first = time.perf_counter() - start
    start = time.perf_counter()
    segmenter.segment(image, "the door", force=True)
    second = time.perf_counter() - start
    start = time.perf_counter()
    segmenter.segment(image, "the lantern", max_new_tokens=ANSWER_TOKENS)
    answered = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"one image, teacher-forced: {first:.1f} s; another question on it: {second:.1f} s ({result.masks.shape})")
    print(f"a generated answer of {ANSWER_TOKENS} tokens on it: {answered:.1f} s")
    print(f"peak memory in all: {peak * 1024 / 1e9:.1f} GB, {peak * 1024 / weights:.2f} x the weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder that does not exist yet, for 16 GB")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint, and use it if it is there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.folder)
        return
    if not (options.folder / "clip").is_dir():
        start = time.perf_counter()
        write_checkpoint(options.folder)
        print(f"written in {time.perf_counter() - start:.0f} s: {options.folder}", flush=True)
    command = [sys.executable, __file__, "--measure", "--folder", str(options.folder)]
    done = subprocess.run(command, check=False)
    if not options.keep:
        shutil.rmtree(options.folder)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
