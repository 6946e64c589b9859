"""Released checkpoints of every family, and ours: loaded to the same numbers, and saved; all forms they come in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import readseg
import released
from readseg.checkpoints.checkpoint import Checkpoint, build, default_dtype, read_checkpoint, save_checkpoint
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.families import FAMILIES, LLAVA_V1, VICUNA_V1
from readseg.model.modeling import ReadModel, ReadOutput
from readseg.model.processing import ReadProcessor
from released import (
    ADDED,
    FORMS,
    LINEAR,
    TOWER,
    Form,
    added_ids,
    change_settings,
    listing,
    our_state,
    refused,
    settings_of,
    tower_weights,
    write_json,
    write_released,
    write_state,
    write_tower,
)
from small import picture, small_model, small_processor

EMBEDDED = Path(readseg.__file__).parent / "weights" / "tiny"
State = dict[str, Tensor]
Change = Callable[[State], Any]

every_family = pytest.mark.parametrize("family", ADDED)


def expected(state: State, tower: int = 0) -> State:
    """Released weights and the tower's, under our names."""
    seen = {f"lmm.model.vision_tower.{n.removeprefix('vision_model.')}": v for n, v in tower_weights(tower).items()}
    return seen | our_state(state)


def check_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys() | {"map_bias"}
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different
    assert found["map_bias"] == 0


def forced(model: ReadModel, processor: ReadProcessor, image: Image.Image | None = None) -> ReadOutput:
    """A teacher-forced answer with two [SEG]."""
    image = picture(48, 48) if image is None else image
    ids, labels = processor.encode([Turn("where is the red cup?", "it is [SEG] and [SEG].")])
    with torch.no_grad():
        return model(
            torch.tensor([ids]),
            pixel_values=processor.lmm_pixels(image)[None],
            mask_pixel_values=processor.mask_pixels(image)[None],
            frames=[processor.frame(image)],
            labels=torch.tensor([labels]),
            return_logits=True,
        )


# -- all families, all forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@every_family
def test_every_family_loads_in_every_form(folder: Path, family: str, form: Form) -> None:
    state = write_released(folder, family, form=form)
    assert (folder / "pytorch_model.bin.index.json").exists() == (form == "bin-sharded")
    before = listing(folder.parent)
    checkpoint = read_checkpoint(folder)
    check_same(checkpoint.weights, expected(state))
    assert all(checkpoint.weights[name].dtype == torch.bfloat16 for name in expected(state))
    assert listing(folder.parent) == before


@every_family
def test_a_family_is_configured_as_its_weights_were_trained(folder: Path, family: str) -> None:
    write_released(folder, family)
    checkpoint = read_checkpoint(folder)
    config, ids = checkpoint.config, added_ids(family)
    assert (config.family, config.prompt, config.view) == (family, FAMILIES[family].prompt, "crop")
    assert config.projector == ("linear" if family in LINEAR else "mlp")
    assert (config.seg_token_id, config.rej_token_id) == (ids["[SEG]"], ids.get("[REJ]"))
    assert config.image_token_id not in {*ids.values(), *range(released.pieces().vocab_size())}
    assert config.conversation == FAMILIES[family].conversation
    points = config.points
    assert (points.num_points, points.t_pos, points.t_neg) == (30, 0.8, 0.2)
    # READ's own rounding for READ; where points are added, this small grid is not reduced.
    assert (points.alignment, points.downsample) == (("reference", 2) if family == "read" else ("exact", 1))
    assert (config.num_image_tokens, config.lmm_size, config.mask_size) == (16, 32, 64)
    assert config.released == settings_of(family)
    mask, vision = config.mask_config, config.mask_config.vision_config
    assert mask.prompt_encoder_config.hidden_size == mask.mask_decoder_config.hidden_size == 32
    assert (vision.hidden_size, vision.num_attention_heads, vision.patch_size) == (20, 2, 16)
    assert (vision.window_size, vision.global_attn_indexes) == (3, [1])
    text = config.lmm_config.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (16, 24, 2)
    assert (text.num_attention_heads, text.rms_norm_eps, text.max_position_embeddings) == (2, 1e-5, 1024)
    assert config.lmm_config.vision_feature_layer == -2
    assert checkpoint.folder == folder.resolve()
    told, *unused = checkpoint.notes
    assert f"family {family} (by config.json)" in told
    assert ["region_encoder" in note for note in unused] == [True] * (family == "glamm")


@every_family
def test_a_family_answers_and_makes_masks(folder: Path, family: str) -> None:
    state = write_released(folder, family)
    model, processor = build(read_checkpoint(folder))
    assert not model.training
    check_same(model.state_dict(), {name: value.float() for name, value in expected(state).items()})
    answer = Segmenter(model, processor).segment(picture(48, 48), "the red cup", max_new_tokens=4)
    assert isinstance(answer.answer, str)
    assert answer.masks.shape[1:] == (48, 48)
    output = forced(model, processor)
    assert output.low_res_logits is not None and output.points is not None and output.logits is not None
    assert output.low_res_logits.shape == (2, 16, 16)
    assert output.low_res_logits.isfinite().all()
    assert not torch.equal(*output.low_res_logits)
    assert [len(points.labels) > 0 for points in output.points] == [family == "read"] * 2
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize(("family", "form"), [("read", "bin-sharded"), ("gsva", "safetensors"), ("glamm", "bin")])
def test_weights_of_a_training_run_are_merged(folder: Path, family: str, form: Form) -> None:
    merged = write_released(folder, family, form=form, unmerged=True)
    checkpoint = read_checkpoint(folder)
    assert any("LoRA" in note and "16" in note for note in checkpoint.notes)
    found, wanted = checkpoint.weights, expected(merged)
    assert found.keys() == wanted.keys() | {"map_bias"}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2**-7, atol=1e-6)
    name = "lmm.model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(found[name], our_state(released.weights_of(family))[name])
    build(checkpoint)


def test_alpha_comes_from_the_run_or_the_caller(read: Path) -> None:
    raw, wanted = released.with_lora(released.weights_of("read"), alpha=64.0)
    write_state(read, raw)
    name = "lmm.model.language_model.layers.1.self_attn.v_proj.weight"

    def loaded(**options: Any) -> Tensor:
        return read_checkpoint(read, **options).weights[name]

    by_caller = loaded(lora_alpha=64.0)
    torch.testing.assert_close(by_caller, our_state(wanted)[name], rtol=2**-7, atol=1e-6)
    assert not torch.equal(loaded(), by_caller)
    write_json(read / "adapter_config.json", {"lora_alpha": 64, "r": 2})
    assert torch.equal(loaded(), by_caller)
    assert any("64" in note for note in read_checkpoint(read).notes)
    assert torch.equal(loaded(lora_alpha=16.0), our_state(released.with_lora(released.weights_of("read"))[1])[name])
    for bad in ("x", 0, -16, None):
        write_json(read / "adapter_config.json", {"lora_alpha": bad})
        refused(read, r"adapter_config.json: lora_alpha")


@pytest.mark.parametrize(
    ("wrapped", "prefix", "unmerged"), [(True, "", False), (False, "module.", True), (True, "module.", True)]
)
def test_what_trainers_put_around_weights_is_taken_off(
    folder: Path, wrapped: bool, prefix: str, unmerged: bool
) -> None:
    write_released(folder, "read", form="bin", unmerged=unmerged)
    plain = read_checkpoint(folder).weights
    write_released(folder, "read", form="bin", unmerged=unmerged, wrapped=wrapped, prefix=prefix)
    found = read_checkpoint(folder).weights
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert found.keys() == plain.keys()


# -- the vision tower --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_tower_in_the_checkpoint_is_the_one(folder: Path, form: Form) -> None:
    state = write_released(folder, "read", form=form, with_tower=True)
    bias = "vision_model.pre_layrnorm.bias"
    assert not torch.equal(state[TOWER + bias], tower_weights(0)[bias])
    (folder.parent / "clip" / "pytorch_model.bin").unlink()  # is not needed
    check_same(read_checkpoint(folder).weights, expected(state, tower=1))


@pytest.mark.parametrize("by", [str, Path, "mm_vision_tower", "vision_tower"])
def test_a_tower_can_be_named(read: Path, by: Any) -> None:
    """By the caller, or as an absolute path in either setting of config.json."""
    other = read.parent / "elsewhere" / "tower"
    write_tower(other, seed=3)
    options = {}
    if isinstance(by, str):
        change_settings(read, **{"mm_vision_tower": ..., by: str(other)})
    else:
        options["vision_tower"] = by(other)
    check_same(read_checkpoint(read, **options).weights, expected(released.weights_of("read"), tower=3))


def test_of_a_whole_clip_only_the_vision_side_is_used_and_its_prefix_may_be_left_out(read: Path) -> None:
    wanted = expected(released.weights_of("read"))
    write_tower(read.parent / "clip", whole=True)
    checkpoint = read_checkpoint(read)
    check_same(checkpoint.weights, wanted)
    assert checkpoint.config.lmm_size == 32
    build(checkpoint)
    shutil.rmtree(read.parent / "clip")
    write_tower(read.parent / "clip")
    plain = {name.removeprefix("vision_model."): value for name, value in tower_weights().items()}
    write_state(read.parent / "clip", plain, "safetensors")
    check_same(read_checkpoint(read).weights, wanted)


# -- types -------------------------------------------------------------------------------------------------------------


def test_one_checkpoint_is_built_in_every_type_that_is_asked_for(folder: Path) -> None:
    wanted = expected(write_released(folder, "read"))
    checkpoint = read_checkpoint(folder)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model, processor = build(checkpoint, dtype=dtype)
        assert forced(model, processor).low_res_logits is not None
        for name, value in model.state_dict().items():
            # SAM's Fourier features stay exact.
            kept = torch.float32 if name.endswith("positional_embedding") else dtype
            assert value.dtype == kept, name
            assert name == "map_bias" or torch.equal(value, wanted[name].to(kept)), name
    check_same(checkpoint.weights, wanted)


def test_a_small_model_computes_in_float32_and_a_large_one_as_stored(read: Path) -> None:
    checkpoint = read_checkpoint(read)
    assert default_dtype(checkpoint, torch.device("cpu")) == torch.float32
    assert default_dtype(checkpoint, torch.device("cuda", 0)) == torch.bfloat16

    def of(numbers: int, dtype: torch.dtype) -> Checkpoint:
        return replace(checkpoint, weights={"lmm.lm_head.weight": torch.empty(numbers, dtype=dtype, device="meta")})

    billion = 2**30  # 4 GiB in float32
    assert default_dtype(of(billion, torch.bfloat16), torch.device("cpu")) == torch.float32
    assert default_dtype(of(billion + 1, torch.bfloat16), torch.device("cpu")) == torch.bfloat16
    assert default_dtype(of(billion + 1, torch.float16), torch.device("cpu")) == torch.float16


_MEASURE = """
import os, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import readseg
import released
from readseg.checkpoints.checkpoint import build, read_checkpoint
from transformers.utils import logging
logging.disable_progress_bar()
place = Path(sys.argv[1])

def in_a_child(work):
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        work()
        sys.exit()

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10

def write():
    size = released.Size(width=512, layers=15, inner=1536)
    released.write_released(place / "weights", "read", size=size)
    released.write_released(place / "safe", "read", size=size, form="safetensors")
    released.write_released(place / "small", "read")

def load(folder, dtype):
    def work():
        build(read_checkpoint(place / "small"), dtype=dtype)  # what libraries make at their first use
        before, peak = anonymous(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        model, _ = build(read_checkpoint(place / folder), dtype=dtype)
        after = anonymous()
        result = sum(weight.nbytes for weight in model.parameters())
        print(folder, dtype, result, after - before, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - peak)
    return work

in_a_child(write)
for folder, dtype in (
    ("weights", torch.bfloat16), ("safe", torch.bfloat16), ("weights", torch.float32), ("weights", torch.float16)
):
    in_a_child(load(folder, dtype))
"""


def test_loading_takes_no_more_memory_than_the_model(tmp_path: Path) -> None:
    """Growth of anonymous memory and of the peak, of a model from 100 MB of bfloat16.

    In the stored type its files are the model. There are three shards: the mapped pages of one that is done need not
    stay.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    here = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{here.parent / 'src'}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    memory = {(folder, dtype): [int(number) for number in numbers] for folder, dtype, *numbers in lines}
    for form in ("weights", "safe"):
        stored, grown, _ = memory[form, "torch.bfloat16"]
        assert stored > 95e6
        assert grown < 0.2 * stored, memory
    for dtype in ("torch.float32", "torch.float16"):
        result, grown, peak = memory["weights", dtype]
        assert 0.9 * result < grown <= 1.2 * result, memory
        assert 0.9 * result < peak <= 1.2 * result, memory


# -- families, settings, arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "said"), [("read", "sesame"), ("read", "lisa"), ("sesame", "read"), ("gsva", "gsva")]
)
def test_a_family_that_is_named_replaces_what_config_json_says(folder: Path, family: str, said: str) -> None:
    write_released(folder, family, form="safetensors")
    checkpoint = read_checkpoint(folder, family=said)
    assert (checkpoint.config.family, checkpoint.config.prompt) == (said, FAMILIES[said].prompt)
    build(checkpoint)


def test_lisa_with_the_names_of_13b_loads(folder: Path) -> None:
    """Three added tokens, [SEG] first; its table of embeddings is a row shorter."""

    def shorter(state: State) -> None:
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            state[name] = state[name][:-1]

    write_released(folder, "lisa", form="bin", change=shorter)
    write_json(folder / "added_tokens.json", added_ids("read"))
    change_settings(folder, vocab_size=settings_of("read")["vocab_size"])
    config = read_checkpoint(folder).config
    assert (config.family, config.seg_token_id) == ("lisa", added_ids("read")["[SEG]"])


def test_the_name_of_a_known_repository_tells_the_family(folder: Path) -> None:
    write_released(folder.parent / "SESAME", "read", form="bin")
    assert read_checkpoint(folder.parent / "SESAME").config.family == "sesame"
    assert read_checkpoint(folder.parent / "SESAME", family="read").config.family == "read"


def test_a_table_may_have_rows_that_no_token_uses(folder: Path) -> None:
    write_released(folder, "read", size=released.Size(spare=5))
    model, processor = build(read_checkpoint(folder))
    assert model.config.image_token_id == added_ids("read")["<im_end>"] + 6
    assert forced(model, processor).logits.shape[-1] == added_ids("read")["<im_end>"] + 6


def test_the_system_prompt_can_be_chosen(read: Path) -> None:
    checkpoint = read_checkpoint(read, system="vicuna_v1")
    assert checkpoint.config.conversation == replace(FAMILIES["read"].conversation, system=VICUNA_V1)
    ours = read.parent / "ours"
    save_checkpoint(checkpoint, ours)
    assert read_checkpoint(ours).config.conversation.system == VICUNA_V1
    for place in (read, ours):
        assert read_checkpoint(place, system="llava_v1").config.conversation.system == LLAVA_V1


# -- there and back ----------------------------------------------------------------------------------------------------


@every_family
def test_released_to_ours_to_released(folder: Path, family: str) -> None:
    state = write_released(folder, family)
    first = read_checkpoint(folder)
    ours, back = folder.parent / "ours", folder.parent / "back"
    save_checkpoint(first, ours)
    second = read_checkpoint(ours)
    check_same(second.weights, expected(state))
    assert (ours / "model.safetensors").is_file()
    values, saved = second.config.to_dict(), first.config.to_dict()
    of_the_file = {"_name_or_path", "transformers_version", "dtype", "architectures"}
    assert {key for key in values.keys() | saved.keys() if values.get(key) != saved.get(key)} <= of_the_file
    assert second.config.released == settings_of(family)
    save_checkpoint(second, back, layout="released")
    for place in (ours, back):
        assert (place / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
        assert json.loads((place / "added_tokens.json").read_text()) == added_ids(family)
    assert json.loads((back / "config.json").read_text()) == settings_of(family)
    files = sorted(back.glob("*.bin"))
    assert files and not list(back.glob("*.safetensors"))
    found: State = {}
    for file in files:
        found |= torch.load(file, weights_only=True)
    assert found.keys() == state.keys()  # GLaMM's region encoder too, which is not used here
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())
    check_same(read_checkpoint(back).weights, expected(state))
    assert {path.name for path in folder.parent.iterdir()} == {"weights", "clip", "ours", "back"}


@pytest.mark.parametrize("family", ["read", "gsva", "glamm"])
def test_ours_gives_the_same_outputs(folder: Path, family: str) -> None:
    write_released(folder, family, unmerged=True, with_tower=True)
    first = read_checkpoint(folder)
    ours = folder.parent / "ours"
    save_checkpoint(first, ours)
    shutil.rmtree(folder.parent / "clip")  # ours has the tower
    wanted = forced(*build(first))
    for model, processor in (
        build(read_checkpoint(ours)),
        (ReadModel.from_pretrained(ours, dtype=torch.float32), ReadProcessor.from_pretrained(ours)),
    ):
        found = forced(model, processor)
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.low_res_logits, wanted.low_res_logits)
        assert torch.equal(found.scores, wanted.scores)


@pytest.mark.parametrize("layout", ["readseg", "released"])
def test_nothing_that_is_there_is_replaced_and_nothing_of_a_failure_is_left(
    read: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, here = read_checkpoint(read), read.parent
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    (here / "empty").mkdir()
    (here / "file").write_text("mine")
    (here / "link").symlink_to(here / "another disk")
    before = listing(here / "full"), {path.name for path in here.rglob("*")}
    for name in ("full", "empty", "file", "link"):
        with pytest.raises(ReadsegError, match=f"{name} is there already"):
            save_checkpoint(checkpoint, here / name, layout=layout)
    with pytest.raises(ReadsegError, match="file"):  # no folder can be made in it
        save_checkpoint(checkpoint, here / "file" / "out", layout=layout)
    damaged = replace(checkpoint, weights=checkpoint.weights | {"lmm.lm_head.weight": torch.full((3, 3), torch.nan)})
    with pytest.raises(ReadsegError, match=r"lm_head"):
        save_checkpoint(damaged, here / "out", layout=layout)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    # The last file that is written.
    monkeypatch.setattr(type(checkpoint.tokenizer), "save_pretrained", full)
    with pytest.raises((ReadsegError, OSError), match="space"):
        save_checkpoint(checkpoint, here / "out", layout=layout)
    assert (listing(here / "full"), {path.name for path in here.rglob("*")}) == before
    assert (here / "file").read_text() == "mine" and (here / "link").is_symlink()


def test_the_embedded_model_is_a_checkpoint() -> None:
    checkpoint = read_checkpoint(EMBEDDED)
    stored = load_file(EMBEDDED / "model.safetensors")
    assert checkpoint.tokenizer is None and checkpoint.config.family == "tiny"
    assert all(torch.equal(checkpoint.weights[name], value) for name, value in stored.items())
    model, processor = build(checkpoint)
    loaded = Segmenter.from_pretrained(device="cpu")
    image = picture(64, 64)
    wanted = forced(loaded.model, loaded.processor, image)
    assert torch.equal(forced(model, processor, image).low_res_logits, wanted.low_res_logits)


def test_our_own_model_comes_back_and_has_no_released_layout(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "small")
    small_processor().save_pretrained(tmp_path / "small")
    for place in (tmp_path / "small", EMBEDDED):
        before = listing(tmp_path)
        with pytest.raises(ReadsegError, match=r"'tiny' have no released layout"):
            save_checkpoint(read_checkpoint(place), tmp_path / "out", layout="released")
        assert listing(tmp_path) == before
    save_checkpoint(read_checkpoint(tmp_path / "small"), tmp_path / "again")
    checkpoint = read_checkpoint(tmp_path / "again")
    again, processor = build(checkpoint)
    state = model.state_dict()
    assert state.keys() == checkpoint.weights.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert torch.equal(forced(again, processor).logits, forced(model, small_processor()).logits)


def test_where_config_is_silent_the_tokenizer_says_where_text_ends(folder: Path) -> None:
    write_released(folder, "lisa")
    change_settings(folder, eos_token_id=None, pad_token_id=-1)
    text = read_checkpoint(folder).config.lmm_config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, 0)


def test_images_without_tokens_around_them(folder: Path) -> None:
    write_released(folder, "glamm")
    change_settings(folder, mm_use_im_start_end=False)
    words = read_checkpoint(folder).config.conversation
    assert words.image_text == "The <image> provides an overview of the picture.\n"


def test_another_tower_than_the_familys_is_told(read: Path) -> None:
    notes = read_checkpoint(read, vision_tower=read.parent / "clip").notes
    assert "16 image tokens, the family's have 576" in notes[-1]
