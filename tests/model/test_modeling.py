from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from readseg.core.sasp import PointConfig
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.model.modeling import ReadModel, ReadOutput
from released import change_weights
from small import picture, small_config, small_model, small_processor

ANSWERS = ("there is no saw.", "it is the cup [SEG].", "the cup [SEG] and, far behind it, the red saw [SEG].")
IMAGES = (picture(30, 40), picture(50, 20, seed=1))


@pytest.fixture(scope="module")
def model() -> ReadModel:
    return small_model()


def images(chosen: Sequence[Image.Image] = IMAGES) -> dict[str, Any]:
    processor = small_processor()
    return {
        "pixel_values": torch.stack([processor.lmm_pixels(image) for image in chosen]),
        "mask_pixel_values": torch.stack([processor.mask_pixels(image) for image in chosen]),
        "frames": [processor.frame(image) for image in chosen],
    }


def texts(answers: Sequence[str]) -> dict[str, Tensor]:
    rows = [small_processor().encode([Turn("what is it?", answer)]) for answer in answers]
    longest = max(len(ids) for ids, _ in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(ids, 0) for ids, _ in rows]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in rows]),
    }


def targets(frames: Sequence[Any], counts: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randint(0, 2, frame.hw, generator=generator, dtype=torch.uint8)
        for frame, count in zip(frames, counts, strict=True)
        for _ in range(count)
    ]


def assert_same_segs(one: ReadOutput, other: ReadOutput, places: Sequence[int], atol: float = 1e-5) -> None:
    """The [SEG] of `one` equal those of `other` at `places`."""
    assert len(one.h_seg) == len(places)
    for name in ("h_seg", "scores", "low_res_logits"):
        torch.testing.assert_close(one[name], other[name][list(places)], atol=atol, rtol=1e-5)
    for points, place in zip(one.points, places, strict=True):
        assert torch.equal(points.labels, other.points[place].labels)
        torch.testing.assert_close(points.xy, other.points[place].xy, atol=atol, rtol=0)


# -- rows, images, [SEG] ---------------------------------------------------------------------------------------


def test_many_rows_on_one_image_equal_repeated_images(model: ReadModel) -> None:
    rows = torch.tensor([1, 0, 1])
    shared = model(**texts(ANSWERS), **images(), row_images=rows)
    repeated = model(**texts(ANSWERS), **images([IMAGES[row] for row in rows]))
    assert shared.seg_images.tolist() == [0, 1, 1]
    assert_same_segs(shared, repeated, range(3))


def test_a_row_without_seg_does_not_move_the_others(model: ReadModel) -> None:
    both = model(**texts(ANSWERS[:2]), **images(), row_images=torch.tensor([0, 1]))
    alone = model(**texts(ANSWERS[1:2]), **images(), row_images=torch.tensor([1]))
    assert_same_segs(alone, both, [0])


def test_features_at_hand_equal_pixels(model: ReadModel) -> None:
    given = images()
    features = {
        "image_features": model.encode_image(given["pixel_values"]),
        "mask_embeddings": model.embed_masks_image(given["mask_pixel_values"]),
        "frames": given["frames"],
    }
    assert features["image_features"].shape == (2, 16, 16)
    assert features["mask_embeddings"].shape == (2, 16, 4, 4)
    assert_same_segs(model(**texts(ANSWERS[1:]), **features), model(**texts(ANSWERS[1:]), **given), range(3), atol=0)


# -- losses ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum(model: ReadModel) -> None:
    given = images()
    scores = model(**texts(ANSWERS[1:]), **given).scores
    coverage = torch.rand(scores.shape)
    out = model(
        **texts(ANSWERS[1:]),
        **given,
        masks=targets(given["frames"], [1, 2]),
        coverage=coverage,
        return_logits=True,
    )
    labels = texts(ANSWERS[1:])["labels"]
    text = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    lit = torch.nn.functional.binary_cross_entropy_with_logits(scores / 16**0.5 + model.map_bias, coverage)
    torch.testing.assert_close(out.text_loss, text)
    torch.testing.assert_close(out.map_loss, lit)
    torch.testing.assert_close(out.loss, out.text_loss + 2 * out.bce_loss + 0.5 * out.dice_loss)


def test_weights_of_losses_count() -> None:
    model = small_model(text_loss_weight=0.5, bce_loss_weight=0.0, dice_loss_weight=0.0, map_loss_weight=3.0)
    given, row = images(IMAGES[:1]), texts(ANSWERS[1:2])
    out = model(**row, **given, masks=targets(given["frames"], [1]), coverage=torch.ones(1, 16))
    torch.testing.assert_close(out.loss, 0.5 * out.text_loss + 3 * out.map_loss)
    del row["labels"]
    assert model(**row, **given).loss is None


def test_without_masks_their_losses_are_zero_and_reach_every_parameter() -> None:
    model = small_model().train()
    given = images(IMAGES[:1])
    out = model(**texts(ANSWERS[:1]), **given, masks=[], coverage=torch.zeros(0, 16))
    assert (out.bce_loss.item(), out.dice_loss.item(), out.map_loss.item()) == (0.0, 0.0, 0.0)
    out.loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None]
    # It serves the vision tower's pooled output, which LLaVA does not use.
    assert idle == [f"lmm.model.vision_tower.post_layernorm.{kind}" for kind in ("weight", "bias")]


# -- prompts ---------------------------------------------------------------------------------------------------


def test_a_seg_prompt_ignores_scores_and_a_points_prompt_ignores_the_embedding(model: ReadModel) -> None:
    given = images(IMAGES[:1])
    embeddings = model.embed_masks_image(given["mask_pixel_values"])
    h_seg, scores, where = torch.randn(2, 16), torch.randn(2, 16), torch.zeros(2, dtype=torch.long)

    def masks(h: Tensor, s: Tensor, prompt: Any) -> Tensor:
        return model.decode_masks(h, s, where, embeddings, given["frames"], prompt=prompt)[1]

    assert torch.equal(masks(h_seg, scores, "seg"), masks(h_seg, -scores, "seg"))
    assert torch.equal(masks(h_seg, scores, "points"), masks(-h_seg, scores, "points"))
    for h, s in ((-h_seg, scores), (h_seg, -scores)):
        assert not torch.allclose(masks(h_seg, scores, "both"), masks(h, s, "both"))


def test_points_are_whole_pixels_without_the_continuous_step_and_carry_gradients_with_it() -> None:
    given = images(IMAGES[:1])
    gradients = {}
    for dtoc in (False, True):
        model = small_model(
            prompt="points", points=PointConfig(num_points=4, downsample=1, alignment="exact", dtoc=dtoc)
        )
        out = model(**texts(ANSWERS[1:2]), **given, masks=targets(given["frames"], [1]))
        xy = out.points[0].xy
        assert xy.dtype == torch.float32
        assert torch.equal(xy, xy.round()) is not dtoc
        out.bce_loss.backward()
        weight = model.lmm.model.language_model.layers[0].self_attn.v_proj.weight
        gradients[dtoc] = 0.0 if weight.grad is None else weight.grad.abs().sum().item()
    assert gradients[False] == 0.0
    assert gradients[True] > 0.0


# -- input that cannot be used ---------------------------------------------------------------------------------


def test_tokens_and_masks_must_fit(model: ReadModel) -> None:
    row, given = texts(ANSWERS[1:2]), images(IMAGES[:1])
    row["input_ids"][0, 5] = 8
    with pytest.raises(ReadsegError, match="row 0 of input_ids has 15 image tokens, expected 16"):
        model(**row, **given)
    with pytest.raises(ReadsegError, match=r"1 masks for 2 \[SEG\]"):
        model(**texts(ANSWERS[2:]), **given, masks=targets(given["frames"], [1]))
    with pytest.raises(ValueError, match="prompt must be one of both, seg, points"):
        model(**texts(ANSWERS[1:2]), **given, prompt="box")


@pytest.mark.parametrize(
    ("left_out", "message"), [("pixel_values", "pixel_values"), ("frames", "frames"), ("mask_pixel_values", "losses")]
)
def test_what_is_missing_is_named(model: ReadModel, left_out: str, message: str) -> None:
    given = images(IMAGES[:1])
    truth = targets(given["frames"], [1])
    del given[left_out]
    with pytest.raises(ReadsegError, match=message):
        model(**texts(ANSWERS[1:2]), **given, masks=truth)


# -- generation ------------------------------------------------------------------------------------------------

QUERIES = ("what is it?", "saw", "where is the red cup that stands behind the saw?")


def prefilled(model: ReadModel) -> tuple[list[int], Any, Tensor]:
    prefix = small_processor().prefix_ids()
    features = model.encode_image(images(IMAGES[:1])["pixel_values"])
    return prefix, *model.prefill(prefix, features)


def query_ids() -> list[list[int]]:
    return [small_processor().query_ids([Turn(query)]) for query in QUERIES]


def test_answers_of_a_batch_equal_single_ones(model: ReadModel) -> None:
    prefix, cache, _ = prefilled(model)
    batch = model.generate_answers(prefix, cache, query_ids(), max_new_tokens=12)
    for query, answer in zip(query_ids(), batch, strict=True):
        (single,) = model.generate_answers(prefix, cache, [query], max_new_tokens=12)
        assert single.ids == answer.ids
        torch.testing.assert_close(single.states, answer.states, atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == len(prefix)
    assert len({tuple(answer.ids) for answer in batch}) > 1


def test_states_of_an_answer_are_those_of_teacher_forcing(model: ReadModel) -> None:
    prefix, cache, h_img = prefilled(model)
    for query, answer in zip(query_ids(), model.generate_answers(prefix, cache, query_ids(), 8), strict=True):
        ids = [*prefix, *query, *answer.ids]
        ids[-1:] = [small_config().seg_token_id]  # what predicts the last token is what predicts a [SEG] there
        out = model(torch.tensor([ids]), pixel_values=images(IMAGES[:1])["pixel_values"])
        torch.testing.assert_close(out.h_seg[-1], answer.states[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.h_img[0], h_img, atol=1e-5, rtol=1e-5)
        assert answer.states.shape == (len(answer.ids), 16)


def test_an_answer_ends_before_its_end_token_or_says_that_it_was_cut_off() -> None:
    model = small_model()
    prefix, cache, _ = prefilled(model)
    (cut,) = model.generate_answers(prefix, cache, query_ids()[:1], max_new_tokens=5)
    assert not cut.finished
    assert len(cut.ids) == 5
    end = cut.ids[2]
    model.config.lmm_config.text_config.eos_token_id = [end, 299]
    (done,) = model.generate_answers(prefix, cache, query_ids()[:1], max_new_tokens=5)
    assert done.finished
    assert done.ids == cut.ids[: cut.ids.index(end)]
    assert len(done.states) == len(done.ids)


def test_no_question_and_one_beyond_the_context(model: ReadModel) -> None:
    prefix, cache, _ = prefilled(model)
    assert model.generate_answers(prefix, cache, []) == []
    with pytest.raises(ReadsegError, match="fewer words"):
        model.generate_answers(prefix, cache, [[9] * 250])


# -- files and precision ---------------------------------------------------------------------------------------


def assert_same_weights(one: ReadModel, other: ReadModel) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert value.dtype == theirs[key].dtype, key
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_give_the_same_model_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    model.save_pretrained(tmp_path)
    row, given = texts(ANSWERS[1:]), images()
    expected = model(**row, **given)
    for loaded in (ReadModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, ReadModel)
        fourier = loaded.sam.shared_image_embedding.positional_embedding
        assert fourier is loaded.sam.prompt_encoder.shared_embedding.positional_embedding
        assert_same_weights(loaded, model)
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
        out = loaded.eval()(**row, **given)
        assert torch.equal(out.low_res_logits, expected.low_res_logits)
        assert torch.equal(out.scores, expected.scores)


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    change_weights(tmp_path / "model.safetensors", lambda held: held.update(stray=held.pop("seg_projection.0.bias")))
    with pytest.raises(ReadsegError, match=r"missing: seg_projection.0.bias; unexpected: stray"):
        ReadModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_spares_positions(tmp_path: Path, dtype: torch.dtype) -> None:
    exact, cast = small_model(), small_model().to(dtype)
    cast.save_pretrained(tmp_path)
    for model in (cast, ReadModel.from_pretrained(tmp_path), ReadModel.from_pretrained(tmp_path, dtype=dtype)):
        assert model.seg_projection[0].weight.dtype == dtype
        for path in ("lmm.model.language_model.rotary_emb.inv_freq", "sam.shared_image_embedding.positional_embedding"):
            owner, _, name = path.rpartition(".")
            kept, wanted = (getattr(m.get_submodule(owner), name) for m in (model, exact))
            assert kept.dtype == torch.float32, path
            assert torch.equal(kept, wanted), path


@pytest.mark.parametrize("autocast", [False, True])
def test_points_keep_their_place_in_bfloat16(autocast: bool) -> None:
    model = small_model() if autocast else small_model().to(torch.bfloat16)
    image = picture(1501, 1999)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**texts(ANSWERS[1:2]), **images([image]))
    xy = out.points[0].xy
    assert out.scores.dtype == xy.dtype == out.low_res_logits.dtype == torch.float32
    grid = (torch.arange(4) + 0.5) / 4
    cells = torch.cartesian_prod(grid, grid) * torch.tensor([1999, 1501])
    assert torch.cdist(xy, cells).min(1).values.max() < 1.5


def test_attention_can_be_chosen() -> None:
    config = small_config()
    config._attn_implementation = "sdpa"
    chosen = ReadModel(config).eval()
    assert chosen.lmm.config.text_config._attn_implementation == "sdpa"
    plain = small_model()
    chosen.load_state_dict(plain.state_dict())
    row, given = texts(ANSWERS[1:]), images()
    assert_same_segs(chosen(**row, **given), plain(**row, **given), range(3))


def test_shapes_are_those_that_the_signatures_tell(model: ReadModel) -> None:
    check = jaxtyped(typechecker=beartype)
    given = images()
    features = check(ReadModel.encode_image)(model, given["pixel_values"])
    embeddings = check(ReadModel.embed_masks_image)(model, given["mask_pixel_values"])
    out = check(ReadModel.forward)(model, **texts(ANSWERS), **given, row_images=torch.tensor([0, 1, 1]))
    check(ReadModel.similarity)(model, out.h_seg, out.h_img[0])
    check(ReadModel.decode_masks)(model, out.h_seg, out.scores, out.seg_images, embeddings, given["frames"])
    prefix = small_processor().prefix_ids()
    cache, _ = check(ReadModel.prefill)(model, prefix, features[:1])
    check(ReadModel.generate_answers)(model, prefix, cache, query_ids(), 3)
