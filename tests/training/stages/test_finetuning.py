"""Training on data sets: batches fit, what moves and what stays, and that packing and caching change the cost alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from readseg.checkpoints.adapters import EMBEDDED_NAME, Base, open_base
from readseg.checkpoints.checkpoint import save_checkpoint
from readseg.data.mixture import Mixture, parse_ratio
from readseg.errors import ReadsegError
from readseg.evaluation.benchmarks import open_benchmark
from readseg.evaluation.report import summarise
from readseg.evaluation.run import evaluate
from readseg.inference.segmenter import Segmenter
from readseg.training.stages.finetuning import Collator, FinetuningStage, trained_config
from released import change_weights, write_released
from small import small_processor
from tuned import options

Make = Callable[..., FinetuningStage]


def gradients(built: FinetuningStage, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of a batch, and the gradients of all that is trained."""
    built.zero_grad()
    values = built(built.batch(number, 0, 1))
    values["loss"].backward()
    found = {name: weight.grad.clone() for name, weight in built.named_parameters() if weight.grad is not None}
    return {name: value.detach() for name, value in values.items()}, found


def fill_lora(built: FinetuningStage, value: float) -> None:
    """B begins at 0, where LoRA does nothing."""
    for name, weight in built.named_parameters():
        if ".lora_B." in name:
            weight.data.fill_(value)


def collator(start: Path, data: Path, **changes: object) -> Collator:
    chosen = options(start, **changes)
    return Collator(Mixture(data, parse_ratio(chosen.ratio), seed=3), small_processor(), chosen, 3)


@pytest.mark.parametrize("pack", [True, False])
def test_each_seg_has_its_mask_in_the_size_of_its_image(start: Path, data: Path, pack: bool) -> None:
    made = collator(start, data, pack=pack)
    seg = made.processor.config.seg_token_id
    for number in range(12):
        batch = made.batch(number)
        rows, columns = np.nonzero(batch["input_ids"].numpy() == seg)
        assert len(rows) == len(batch["masks"])
        for row, mask in zip(rows, batch["masks"], strict=True):
            assert mask.shape == batch["frames"][batch["row_images"][row]].hw
        # A question holds no [SEG]: each of them is learned.
        assert (batch["labels"].numpy()[rows, columns] == seg).all()


def test_masks_follow_their_questions_when_rows_are_sorted(start: Path, data: Path) -> None:
    made = collator(start, data)
    drawn = next(d for d in map(made.mixture.draw, range(99)) if len({len(t.question) for t in d.sample.turns}) > 2)
    rows = made.conversations(drawn)
    assert [len(row.ids) for row in rows] == sorted((len(row.ids) for row in rows), reverse=True)
    by_question = {turn.question: turn.masks for turn in drawn.sample.turns}
    for row in rows:
        (turn,) = row.turns
        assert all(mask is expected for mask, expected in zip(row.masks, by_question[turn.question], strict=True))


def test_a_long_conversation_loses_its_last_rounds(start: Path, data: Path) -> None:
    long = collator(start, data, ratio="0:0:0:1:0:0", max_tokens=4096)
    drawn = max(map(long.mixture.draw, range(8)), key=lambda item: len(item.sample.turns))
    (whole,) = long.conversations(drawn)
    assert len(whole.turns) == len(drawn.sample.turns) > 1
    room = len(whole.ids) - 1
    short = collator(start, data, ratio="0:0:0:1:0:0", max_tokens=max(32, room))
    (row,) = short.conversations(drawn)
    assert 0 < len(row.turns) < len(drawn.sample.turns)
    assert row.turns == list(drawn.sample.turns[: len(row.turns)])
    assert len(row.ids) <= room


def test_of_a_question_that_is_too_long_nothing_is_left(start: Path, data: Path) -> None:
    made = collator(start, data, ratio="0:0:0:0:0:1", max_tokens=32)
    with pytest.warns(UserWarning, match="more than max_tokens, 32"):
        batch = made.batch(0)
    assert not batch["masks"] and batch["input_ids"].shape[1] == len(made.prefix)
    assert made.skipped.count > 0


def test_a_batch_is_a_function_of_its_number(start: Path, data: Path) -> None:
    one, other = collator(start, data), collator(start, data)
    (first, second), (again_second, again_first) = map(one.batch, (4, 1)), map(other.batch, (1, 4))
    for batch, again in ((first, again_first), (second, again_second)):
        assert torch.equal(batch["input_ids"], again["input_ids"]) and batch["seed"] == again["seed"]
    assert first["seed"] != second["seed"]


def test_only_lora_and_the_named_parts_move(make: Make) -> None:
    built = make()
    _, found = gradients(built, 0)
    moved = {name.removeprefix("model.") for name, grad in found.items() if grad.abs().sum() > 0}
    trained = {name for name, weight in built.model.named_parameters() if weight.requires_grad}
    whole = ("lmm.lm_head.", "lmm.model.language_model.embed_tokens.", "sam.mask_decoder.", "seg_projection.")
    for name in trained:
        assert name.startswith(whole) or ".lora_" in name, name
    for part in whole:
        assert any(name.startswith(part) for name in moved), part
    lora = {name for name in trained if ".lora_" in name}
    layers = range(built.model.config.lmm_config.text_config.num_hidden_layers)
    place = "lmm.model.language_model.layers"
    assert lora == {
        f"{place}.{layer}.self_attn.{target}.lora_{half}.default.weight"
        for layer in layers for target in ("q_proj", "v_proj") for half in "AB"
    }  # fmt: skip
    # B begins at 0: nothing reaches A before B has moved.
    assert lora & moved == {name for name in lora if ".lora_B." in name}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_rows_of_their_own(make: Make, checkpointing: bool) -> None:
    """Losses and gradients within 1e-5: the cost is all that differs."""
    settings: dict[str, Any] = {"lora_dropout": 0.0, "images_per_step": 3, "map_loss_weight": 1.0}
    packed, single = (make(pack=pack, gradient_checkpointing=checkpointing, **settings) for pack in (True, False))
    for built in (packed, single):
        fill_lora(built, 0.05)
    for number in (0, 3, 7):
        rows = [len(built.batch(number, 0, 1)["input_ids"]) for built in (packed, single)]
        assert rows[0] == 3 < rows[1]
        assert_close(gradients(packed, number), gradients(single, number), atol=1e-5, rtol=1e-5)


def test_cached_equals_computed(make: Make, tmp_path: Path) -> None:
    plain, cold = make(), make(cache=True)
    first = gradients(plain, 2)
    assert_close(gradients(cold, 2), first, atol=0.0, rtol=0.0)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == len({path.name for path in files}) >= 1
    warm = make(cache=True)
    assert all("features" in image for image in warm.batch(2, 0, 1)["images"])
    assert_close(gradients(warm, 2), first, atol=0.0, rtol=0.0)
    assert sorted((tmp_path / "cache").iterdir()) == files


def test_other_encoders_do_not_find_what_is_cached(make: Make, tmp_path: Path) -> None:
    first = make(cache=True)
    gradients(first, 0)
    held = [path.name for path in (tmp_path / "cache").iterdir()]
    assert all(name.startswith(f"{first._encoders_digest()}-") for name in held)
    with torch.no_grad():
        next(first.model.sam.vision_encoder.parameters()).mul_(1.5)
    assert not any(name.startswith(f"{first._encoders_digest()}-") for name in held)


def test_the_cache_stays_below_its_limit(make: Make, tmp_path: Path) -> None:
    built = make(cache=True, cache_gb=1e-9)
    for number in range(3):
        built(built.batch(number, 0, 1))
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the last one that began below it


def test_what_does_not_fit_in_the_cache_is_computed_again(make: Make, tmp_path: Path) -> None:
    built = make(cache=True)
    first = gradients(built, 0)
    damages = (
        lambda state: state.update(features=state["features"][:3].contiguous()),
        lambda state: state.update(features=state["features"].half()),
        lambda state: state.pop("embeddings"),
        None,
    )
    for damage in damages:
        for path in (tmp_path / "cache").iterdir():
            if damage:
                change_weights(path, damage)
            else:
                path.write_bytes(path.read_bytes()[:50])
        assert_close(gradients(built, 0), first, atol=0.0, rtol=0.0)


def test_dropout_is_a_function_of_the_batch(make: Make) -> None:
    built = make()
    fill_lora(built, 0.3)
    batch = built.batch(1, 0, 1)
    first = built(batch)["loss"]
    torch.rand(100)
    assert torch.equal(built(batch)["loss"], first)
    assert not torch.equal(built(batch | {"seed": batch["seed"] + 1})["loss"], first)


def test_the_map_loss_is_there_when_it_is_weighed(make: Make) -> None:
    built = make(map_loss_weight=1.0)
    values, found = gradients(built, 0)
    assert values["map"] > 0 and found["model.map_bias"].abs() > 0
    assert "map" not in gradients(make(), 0)[0]


def test_half_precision_trains_and_validates(make: Make) -> None:
    """As GPUs do: frozen weights in bfloat16, trained ones in float32, under autocast."""
    settings = {"precision": "bf16", "gradient_checkpointing": True}
    built = make(validate_on=("refcoco/val",), validate_every=1, validate_images=1, **settings)
    kinds = {(weight.requires_grad, weight.dtype) for weight in built.parameters() if weight.ndim > 1}
    assert kinds - {(False, torch.float32)} == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        half, found = gradients(built, 0)
        score, _ = built.validate(0, 1)
        again, _ = gradients(built, 0)  # what validation cached of weights must not be left over
    assert 0 <= score <= 1 and half["loss"] == again["loss"]
    assert all(grad.dtype == torch.float32 for grad in found.values())
    full, _ = gradients(make(), 0)
    assert half["loss"] == pytest.approx(float(full["loss"]), rel=0.05)


def test_a_start_in_this_layout_becomes_the_family_that_is_asked_for(tmp_path: Path) -> None:
    write_released(tmp_path / "SESAME", "sesame")
    released = open_base(Base(str(tmp_path / "SESAME"), family="read"))
    save_checkpoint(open_base(Base(str(tmp_path / "SESAME"))), tmp_path / "ours")
    ours = open_base(Base(str(tmp_path / "ours"), family="read"))
    assert (ours.config.family, ours.config.prompt) == ("sesame", "seg")
    chosen = options(tmp_path, family="read", points={"num_points": 9})
    one, other = (trained_config(checkpoint.config, chosen) for checkpoint in (released, ours))
    for name in ("family", "prompt", "points", "conversation"):
        assert getattr(one, name) == getattr(other, name), name
    assert (other.points.alignment, other.points.num_points) == ("reference", 9)
    assert other.released["architectures"] == ["READForCausalLM"]


def test_settings_reach_the_model_and_wrong_ones_are_named(make: Make) -> None:
    built = make(points={"num_points": 7, "t_pos": 0.6}, dice_loss_weight=4.0, prompt="seg")
    config = built.model.config
    assert (config.points.num_points, config.points.t_pos, config.points.t_neg) == (7, 0.6, 0.2)
    assert (config.dice_loss_weight, config.bce_loss_weight, config.prompt) == (4.0, 2.0, "seg")

    with pytest.raises(ReadsegError, match=r"no layer x_proj; it has .*q_proj"):
        make(lora_targets=("x_proj",))
    with pytest.raises(ReadsegError, match=r"points: downsample must not exceed"):
        make(points={"downsample": 9})


def test_validation_is_evaluation(make: Make, data: Path) -> None:
    names = ("refcoco/val", "reasonseg/val")
    built = make(validate_on=names, validate_every=2, validate_images=2)
    score, numbers = built.validate(0, 1)
    assert built.model.training
    own = []
    for name in names:
        outcomes = evaluate(Segmenter(built.model, built.processor), open_benchmark(data, name), limit=2)
        own.append(summarise(outcomes)["giou"].value)
        assert numbers[f"{name} giou"] == own[-1]
    assert score == sum(own) / 2
    built.train()
    with pytest.raises(ReadsegError, match="no split 'elsewhere'"):  # before any training
        make(validate_on=("refcoco/elsewhere",), validate_every=2)


def test_it_learns_a_batch_by_heart(data: Path, tmp_path: Path) -> None:
    """The embedded model learns words and masks of one batch: the gradients lead where they should."""
    base = Base(EMBEDDED_NAME)
    settings = {"ratio": "0:1:0:0:0:0", "images_per_step": 1, "lora_rank": 8, "lora_dropout": 0.0}
    built = FinetuningStage(open_base(base), base, options(Path(EMBEDDED_NAME), **settings), 0, data, tmp_path).train()
    trained = [weight for weight in built.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    batch, history = built.batch(0, 0, 1), []
    for _ in range(22):
        values = built(batch)
        optimizer.zero_grad()
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in values.items()})
    assert history[-1]["dice"] < 0.4 * history[0]["dice"]
    assert history[-1]["text"] < 0.1 < 5 < history[0]["text"]
