"""Similarity maps: each at the states that its name says, on the image where it belongs, and nowhere else."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, SamModel

from answers import SIZE, TWO, read_answer, small
from readseg.analysis.answer_states import AnswerStates, ExamineOptions, phrase_tokens
from readseg.analysis.similarity_maps import (
    MAPS,
    SimilarityMap,
    clip_map,
    layer_maps,
    lmm_frame_map,
    load_clip,
    mask_frame_map,
    phrase_map,
)
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig, full_map
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import Points, embed_prompts
from readseg.model.prompt_format import inference_question
from released import write_tower
from small import picture, small_tokenizer
from tiny_segmenter import ANSWERS, build, load

CLOSE = {"rtol": 0, "atol": 1e-4}
CPU = torch.device("cpu")
before_maps, sam_maps = MAPS["before"].compute, MAPS["sam"].compute


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Answers by itself."""
    return load(build(tmp_path_factory.mktemp("model")))


@cache
def reading_of(answer: str = TWO, prompt: str | None = None) -> AnswerStates:
    return read_answer(small(), picture(*SIZE), "the red cup", answer=answer, options=ExamineOptions(prompt))


def same_maps(ours: list[SimilarityMap], scores: np.ndarray, maps: np.ndarray) -> None:
    assert len(ours) == len(scores)
    for one, score, on_image in zip(ours, scores, maps, strict=True):
        np.testing.assert_allclose(one.scores, score, **CLOSE)
        np.testing.assert_allclose(one.map, on_image, **CLOSE)


# -- the language model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ANSWERS)
def test_last_layer_equals_what_the_segmenter_says(learned: Segmenter, query: str) -> None:
    reading = read_answer(learned, picture(*SIZE), query)
    result = learned.segment(picture(*SIZE), query)
    assert reading.result.answer == result.answer == ANSWERS[query]
    maps = layer_maps(reading)
    assert len(maps) == ANSWERS[query].count("[SEG]")
    same_maps(maps, result.scores, result.similarity)
    for found in maps:
        assert (found.layer, found.of, found.grid_hw) == (2, "[SEG]", (4, 4))
        assert found.map is not None and found.map.dtype == np.float32
        assert found.map.shape == SIZE


@pytest.mark.parametrize(
    ("view", "alignment"), [("crop", "exact"), ("crop", "reference"), ("letterbox", "exact"), ("stretch", "exact")]
)
@pytest.mark.parametrize("size", [(40, 60), (61, 37)])
@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_maps_lie_where_the_model_sees(view: str, alignment: Any, size: tuple[int, int]) -> None:
    points = PointConfig(num_points=5, downsample=1, alignment=alignment)
    asked, options = "where is it?", ExamineOptions(points=points)
    reading = read_answer(small(view), picture(*size), asked, answer=TWO, options=options, asks=False)
    result = small(view).segment(picture(*size), asked, force=TWO, points=points, asks=False)
    same_maps(layer_maps(reading), result.scores, result.similarity)
    outside = np.zeros(size, bool)
    if view == "crop":
        short = min(size)
        top, left = (size[0] - short) // 2, (size[1] - short) // 2
        # One pixel is left to the two alignments' rounding.
        outside[:] = True
        outside[max(top - 1, 0) : top + short + 1, max(left - 1, 0) : left + short + 1] = False
        assert outside.any()
    for found in [*layer_maps(reading), *layer_maps(reading, 1), *before_maps(reading), phrase_map(reading, "cup")]:
        assert found.map is not None and found.map.shape == size
        assert found.map.min() >= 0 and found.map.max() <= 1
        assert not found.map[outside].any()
        assert found.map[~outside].mean() > 0.1


@pytest.mark.parametrize(
    "query", ["the red cup", "where is the red cup?", "where could I sit", "is there a cup?", "Segment the cup."]
)
@pytest.mark.parametrize("wish", [{}, {"asks": False}, {"sentence": True}, {"sentence": False}])
def test_questions_are_worded_as_the_segmenter_words_them(query: str, wish: dict[str, bool]) -> None:
    # Random weights: another question gives other scores.
    reading = read_answer(small(), picture(*SIZE), query, answer=True, **wish)
    same_maps(layer_maps(reading), reading.result.scores, reading.result.similarity)


def test_layers_are_those_of_the_model() -> None:
    """Against hooks on the blocks while `ReadModel.forward` reads the same text."""
    reading, model, processor = reading_of(), small().model, small().processor
    image = picture(*SIZE)
    seen: list[Tensor] = []
    language = model.lmm.model.language_model
    handles = [
        language.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0])),
        *(layer.register_forward_hook(lambda _module, _args, output: seen.append(output)) for layer in language.layers),
    ]
    # "the red cup" is a name: the family has words to ask for it.
    question = inference_question(processor.config.conversation, "the red cup")
    ids = torch.tensor([processor.encode([Turn(question, TWO)])[0]])
    with torch.inference_mode():
        output = model(ids, pixel_values=processor.lmm_pixels(image)[None])
    for handle in handles:
        handle.remove()
    assert reading.num_layers == len(language.layers) == 2
    hidden = [states[0] for states in seen]
    last = language.norm(hidden.pop())
    image_places = ids[0] == model.config.image_token_id
    seg_places = (ids[0] == model.config.seg_token_id).nonzero().flatten()
    for layer, states in enumerate([*hidden, last]):
        found = layer_maps(reading, layer)
        expected = states[seg_places - 1] @ states[image_places].T
        assert [one.layer for one in found] == [layer, layer]
        np.testing.assert_allclose(np.stack([one.scores for one in found]), expected.detach(), **CLOSE)
        if layer == 1:  # not normed, and it makes a difference
            normed = language.norm(states)
            assert (normed[seg_places - 1] @ normed[image_places].T - expected).abs().max() > 0.1
    same_maps(layer_maps(reading, 2), output.scores.numpy(), reading.result.similarity)
    assert torch.equal(reading.h_img[0], reading.encoded.patches)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_an_error(layer: int) -> None:
    with pytest.raises(ReadsegError, match=re.escape(f"layer must be 0 (embeddings) to 2 (last); got {layer}")):
        layer_maps(reading_of(), layer)
    with pytest.raises(ReadsegError, match="layer must be"):
        phrase_map(reading_of(), "cup", layer)


def test_before_the_language_model() -> None:
    reading, model = reading_of(), small().model
    with torch.inference_mode():
        patches = model.encode_image(small().processor.lmm_pixels(picture(*SIZE))[None])[0]
    found = before_maps(reading)
    np.testing.assert_allclose(np.stack([one.scores for one in found]), reading.h_seg @ patches.T, **CLOSE)
    assert {one.layer for one in found} == {None}
    assert np.abs(found[0].scores - layer_maps(reading)[0].scores).max() > 0.1


def test_an_answer_without_seg_has_no_maps() -> None:
    reading = reading_of("there is no saw.")
    assert layer_maps(reading) == layer_maps(reading, 0) == before_maps(reading) == sam_maps(reading) == []
    assert phrase_map(reading, "saw").map is not None


def test_a_constant_map_is_none() -> None:
    reading = reading_of()
    flat = dataclasses.replace(reading, h_img=torch.zeros_like(reading.h_img))
    assert [one.map for one in layer_maps(flat)] == [None, None]
    for bad in (torch.full((16,), 3.0), torch.full((16,), torch.nan), torch.tensor([torch.inf, *[0.0] * 15])):
        assert lmm_frame_map(bad, SIZE) is None
        assert mask_frame_map(bad, (4, 4), ImageFrame(*SIZE, 32, 32)) is None


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_are_predicted_one_place_before() -> None:
    reading, processor = reading_of(), small().processor
    for phrase in ("red cup", "cup", "saw", "it", "there is a"):
        places = phrase_tokens(reading, phrase)
        assert processor.decode([reading.result.answer_ids[place] for place in places]) == phrase
        expected = reading.h_answer[-1, list(places)].mean(0) @ reading.h_img[-1].T
        found = phrase_map(reading, phrase)
        np.testing.assert_allclose(found.scores, expected, **CLOSE)
        assert (found.layer, found.of) == (2, phrase)
    assert phrase_tokens(reading, "RED cup") == phrase_tokens(reading, "red cup")


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_the_phrase_seg_gives_the_map_of_seg(layer: int | None) -> None:
    found, expected = (
        phrase_map(reading_of(), "[SEG]", layer),
        layer_maps(reading_of(), 2 if layer is None else layer)[0],
    )
    np.testing.assert_allclose(found.scores, expected.scores, **CLOSE)
    np.testing.assert_allclose(found.map, expected.map, **CLOSE)


def test_characters_beyond_ascii_count_once() -> None:
    reading = reading_of("é 杯 it is the café [SEG] 杯 cup.")
    processor = small().processor
    assert reading.result.answer == "é 杯 it is the café [SEG] 杯 cup."
    for phrase in ("é", "杯", "café", "cup", "it"):
        places = phrase_tokens(reading, phrase)
        assert processor.decode([reading.result.answer_ids[place] for place in places]) == phrase


@pytest.mark.parametrize("phrase", ["dog", "cu", "", "  ", "red saw"])
def test_a_phrase_that_is_not_there_is_an_error(phrase: str) -> None:
    with pytest.raises(ReadsegError, match=r"is not in the answer 'it is the red cup \[SEG\]"):
        phrase_map(reading_of(), phrase)


# -- the mask decoder --------------------------------------------------------------------------------------------------


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (T, C) to (M, C), written out."""
    heads = module.num_attention_heads
    q, k, v = (
        layer(given).unflatten(-1, (heads, -1)).transpose(0, 1)
        for layer, given in ((module.q_proj, query), (module.k_proj, key), (module.v_proj, value))
    )
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return module.out_proj((weights @ v).transpose(0, 1).flatten(1))


def decoder_tokens(sam: SamModel, embeddings: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's two-way transformer, written out: (C, h, w) and (K, C) -> final tokens (5 + K, C) and image (hw, C)."""
    decoder = sam.mask_decoder
    start = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, sparse])
    image = (embeddings + sam.prompt_encoder.no_mask_embed.weight[0, :, None, None]).flatten(1).T
    where = sam.get_image_wide_positional_embeddings()[0].flatten(1).T
    tokens = start
    for place, block in enumerate(decoder.transformer.layers):
        if place == 0:
            tokens = attend(block.self_attn, tokens, tokens, tokens)
        else:
            tokens = tokens + attend(block.self_attn, tokens + start, tokens + start, tokens)
        tokens = block.layer_norm1(tokens)
        tokens = tokens + attend(block.cross_attn_token_to_image, tokens + start, image + where, image)
        tokens = block.layer_norm2(tokens)
        tokens = tokens + block.mlp.lin2(F.relu(block.mlp.lin1(tokens)))
        tokens = block.layer_norm3(tokens)
        image = image + attend(block.cross_attn_image_to_token, image + where, tokens + start, tokens)
        image = block.layer_norm4(image)
    final = decoder.transformer
    tokens = tokens + attend(final.final_attn_token_to_image, tokens + start, image + where, image)
    return final.layer_norm_final_attn(tokens), image


def sparse_tokens(reading: AnswerStates, place: int) -> Tensor:
    """The prompt of one [SEG]: its points, SAM's padding point, and the projected [SEG], last."""
    model = small().model
    projected = model.seg_projection(reading.h_seg[place])[None, None]
    xy, labels = torch.tensor(reading.result.points_xy[place]), torch.tensor(reading.result.point_labels[place])
    if not len(xy):
        return projected[0]
    points = Points(xy, labels)
    return embed_prompts(model.sam, reading.frame.to_mask_frame(points.xy)[None], labels[None], tokens=projected)[0]


@pytest.mark.parametrize(("prompt", "count"), [("both", 5), ("seg", 0)])
@torch.inference_mode()
def test_sam_map_is_that_of_the_seg_token_and_of_no_other(prompt: str, count: int) -> None:
    reading, model = reading_of(prompt=prompt), small().model
    embeddings = model.embed_masks_image(small().processor.mask_pixels(picture(*SIZE))[None])
    found = sam_maps(reading)
    assert len(found) == 2
    for place, ours in enumerate(found):
        assert len(reading.result.point_labels[place]) == count
        sparse = sparse_tokens(reading, place)
        tokens, image = decoder_tokens(model.sam, embeddings[0], sparse)
        scores = tokens @ image.T
        np.testing.assert_allclose(ours.scores, scores[-1], **CLOSE)
        # One token early is SAM's padding point (or a mask token): the well-known trap.
        assert len(tokens) == 1 + 4 + (count + 1 if count else 0) + 1
        for other in range(len(tokens) - 1):
            assert np.abs(ours.scores - scores[other].numpy()).max() > 0.05, other
            wrong = mask_frame_map(scores[other], (4, 4), reading.frame)
            assert np.abs(ours.map - wrong).max() > 0.05, other
        right = mask_frame_map(scores[-1], (4, 4), reading.frame)
        np.testing.assert_allclose(ours.map, right, **CLOSE)
        assert (ours.layer, ours.of, ours.grid_hw) == (None, "[SEG]", (4, 4))


def test_the_decoder_is_left_as_it_was() -> None:
    transformer = small().model.sam.mask_decoder.transformer
    before = len(transformer._forward_hooks)
    sam_maps(reading_of())
    assert len(transformer._forward_hooks) == before


def test_the_part_of_the_mask_frame_that_is_padded_is_cut_off() -> None:
    """40 x 60 fills two and two thirds of the four rows of tokens: what the last row says is not on the image."""
    frame = ImageFrame(*SIZE, 32, 32)
    scores = torch.rand(4, 4)
    scores[0, 0], scores[0, 1] = -1.0, 2.0  # the range, whatever the last row says
    low = mask_frame_map(scores.flatten(), (4, 4), frame)
    scores[3] = torch.rand(4)
    other = mask_frame_map(scores.flatten(), (4, 4), frame)
    assert low.shape == SIZE
    assert 0 <= low.min() < low.max() <= 1
    rows = np.abs(low - other).max(axis=1)
    # Only rows that bilinear sampling mixes with the last row of tokens see it.
    assert not rows[: int(2.5 / 4 * 60) - 1].any()
    peak = torch.zeros(16)
    peak[5] = 1  # the token of row 1, column 1: its centre is 22.5 pixels from the left and from the top
    y, x = np.unravel_index(mask_frame_map(peak, (4, 4), frame).argmax(), SIZE)
    assert abs(y + 0.5 - 22.5) <= 1
    assert abs(x + 0.5 - 22.5) <= 1


def test_a_map_without_points_leaves_the_seg_alone_in_the_decoder() -> None:
    reading = reading_of()
    flat = dataclasses.replace(reading, h_img=torch.zeros_like(reading.h_img))
    for ours, expected in zip(sam_maps(flat), sam_maps(reading_of(prompt="seg")), strict=True):
        np.testing.assert_allclose(ours.scores, expected.scores, **CLOSE)


def test_a_decoder_that_gets_points_alone_gets_a_seg_for_its_map() -> None:
    for ours, expected in zip(sam_maps(reading_of(prompt="points")), sam_maps(reading_of()), strict=True):
        np.testing.assert_allclose(ours.scores, expected.scores, **CLOSE)


# -- all of them -------------------------------------------------------------------------------------------------------


def test_one_seg_among_others_has_the_map_that_it_has_alone() -> None:
    """The first [SEG] does not see the second: causal states, and one decoder call for each."""
    both, alone = reading_of(), reading_of(TWO[: TWO.index("[SEG]") + 5])
    for first, only in (
        (layer_maps(both)[0], layer_maps(alone)[0]),
        (layer_maps(both, 1)[0], layer_maps(alone, 1)[0]),
        (before_maps(both)[0], before_maps(alone)[0]),
        (sam_maps(both)[0], sam_maps(alone)[0]),
    ):
        np.testing.assert_allclose(first.scores, only.scores, **CLOSE)
        np.testing.assert_allclose(first.map, only.map, **CLOSE)


def test_a_hidden_part_is_told_once_for_all_maps_of_an_answer() -> None:
    with pytest.warns(UserWarning, match="hidden"):
        reading = read_answer(small("crop"), picture(30, 90), "the red cup", answer=TWO)
    assert len(sam_maps(reading)) == 2  # a warning here would be an error


# -- CLIP --------------------------------------------------------------------------------------------------------------


@cache
def small_clip(image_size: int = 24) -> CLIPModel:
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **layers, vocab_size=len(small_tokenizer()), eos_token_id=small_tokenizer().eos_token_id, projection_dim=8
    )
    vision = CLIPVisionConfig(**layers, image_size=image_size, patch_size=8, projection_dim=8)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    return model


def clip_words(text: str, **_: Any) -> dict[str, Tensor]:
    """A tokenizer, called as CLIP's."""
    ids = torch.tensor([[*small_tokenizer().encode(text, add_special_tokens=False), small_tokenizer().eos_token_id]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def seen_by(model: CLIPModel, tokenizer: Any, view: str = "stretch") -> AnswerStates:
    """An answer with a CLIP among its options."""
    options = ExamineOptions(clip=(model, tokenizer))
    return read_answer(small(view), picture(*SIZE), "the red cup", answer=TWO, options=options)


def write_clip(folder: Path) -> Path:
    small_clip().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder(tmp_path: Path) -> None:
    model, tokenizer = load_clip(write_clip(tmp_path / "clip"), CPU)
    assert not model.training and model.dtype == torch.float32
    for name, weight in small_clip().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    found = clip_map(seen_by(model, tokenizer), "red cup")
    expected = clip_map(seen_by(small_clip(), small_tokenizer()), "red cup")
    assert found.map is not None and found.map.shape == (40, 60)
    np.testing.assert_allclose(found.map, expected.map, atol=1e-5)


def test_what_is_no_clip_is_an_error(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower")
    with pytest.raises(ReadsegError, match=r"of type 'clip_vision_model'.*the vision tower alone knows no text"):
        load_clip(tmp_path / "tower", CPU)
    with pytest.raises(ReadsegError, match="no such folder"):
        load_clip(tmp_path / "nowhere", CPU)


def test_missing_and_damaged_parts_are_errors(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    state = {name: weight for name, weight in small_clip().state_dict().items() if name != "text_projection.weight"}
    small_clip().save_pretrained(folder, state_dict=state)
    with pytest.raises(ReadsegError, match=r"missing or of a wrong shape: text_projection\.weight"):
        load_clip(folder, CPU)
    write_clip(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ReadsegError, match="this CLIP cannot be read"):
        load_clip(folder, CPU)
    write_clip(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ReadsegError, match="this CLIP cannot be read"):
        load_clip(folder, CPU)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ReadsegError, match="the tokenizer of this CLIP is missing"):
        load_clip(folder, CPU)


def cosines(model: CLIPModel, text: str, pixels: Tensor) -> Tensor:
    """Of a text and the class token (first) and each patch, of CLIP's own pieces."""
    states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    patches = model.visual_projection(model.vision_model.post_layernorm(states))[0]
    return F.cosine_similarity(model.text_projection(model.text_model(**clip_words(text)).pooler_output), patches)


@torch.inference_mode()
def test_the_class_token_in_the_patches_place_is_clips_own_score() -> None:
    model, pixels = small_clip(), torch.randn(1, 3, 24, 24)
    whole = model(**clip_words("red cup"), pixel_values=pixels).logits_per_image[0, 0] / model.logit_scale.exp()
    torch.testing.assert_close(cosines(model, "red cup", pixels)[0], whole, **CLOSE)


@pytest.mark.parametrize("view", ["crop", "letterbox", "stretch"])
@pytest.mark.filterwarnings("ignore:the model sees only the centre")
def test_clip_map_sees_what_the_model_sees(view: str) -> None:
    found = clip_map(seen_by(small_clip(), clip_words, view), "red cup")
    assert (found.layer, found.of, found.grid_hw) == (None, "red cup", (3, 3))
    frame = ImageFrame(*SIZE, 24, 32, view)
    expected = full_map(torch.tensor(found.scores)[None], SIZE, box=frame.lmm_box)[0]
    np.testing.assert_allclose(found.map, expected, **CLOSE)
    # With a tower of the model's own size, the pixels are the processor's.
    same = clip_map(seen_by(small_clip(32), clip_words, view), "red cup")
    pixels = small(view).processor.lmm_pixels(picture(*SIZE))[None]
    with torch.inference_mode():
        np.testing.assert_allclose(same.scores, cosines(small_clip(32), "red cup", pixels)[1:], **CLOSE)
        other = cosines(small_clip(32), "saw", pixels)[1:].numpy()
    assert np.abs(same.scores - other).max() > 0.01
