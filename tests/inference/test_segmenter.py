"""The segmenter: one or many questions, conversations, caches, and every way to ask wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from readseg.checkpoints import load as loading
from readseg.core.images import ImageError
from readseg.core.sasp import PointConfig
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.queries import QueryError, asks_for_mask, requests_mask
from readseg.inference.result import Segmentation
from readseg.inference.segmenter import Segmenter
from readseg.model.config import ConversationConfig, Prompt
from small import picture
from tiny_segmenter import ANSWERS, LONGEST_CONTEXT, build, load

EIGHT = [*ANSWERS, "the cat", "some other thing that nobody trained", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shared(folder: Path) -> Segmenter:
    return load(folder)


@pytest.fixture
def segmenter(shared: Segmenter) -> Iterator[Segmenter]:
    """The shared one, which remembers no image; what is set on it is taken back."""
    shared._encoded.clear()
    yield shared
    shared._encoded.clear()


def assert_same(one: Segmentation, other: Segmentation) -> None:
    for name in ("query", "answer", "present", "finished"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.masks, other.masks)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    for name, tolerance in (("points_xy", 1e-3), ("point_labels", 0)):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)


def test_answers_masks_and_presence(shared: Segmenter) -> None:
    results = shared.segment(picture(), list(ANSWERS))
    assert [(r.query, r.answer) for r in results] == list(ANSWERS.items())
    assert [(r.present, len(r.masks)) for r in results] == [(True, 1), (True, 1), (True, 2), (False, 0), (None, 0)]
    for r in results:
        assert r.masks.shape[1:] == r.image_size == (40, 60) and r.masks.dtype == bool
        assert r.finished and np.isfinite(r.similarity).all()
        for xy, labels in zip(r.points_xy, r.point_labels, strict=True):
            assert len(xy) == len(labels) > 0
            assert (xy >= 0).all() and (xy <= (60, 40)).all()


@pytest.mark.parametrize("prompt", ["both", "seg", "points"])
def test_many_queries_give_what_single_ones_give(segmenter: Segmenter, prompt: Any) -> None:
    together = segmenter.segment(picture(), EIGHT, prompt=prompt)
    for query, one in zip(EIGHT, together, strict=True):
        segmenter._encoded.clear()
        assert_same(one, segmenter.segment(picture(), query, prompt=prompt))


def test_more_queries_than_are_decoded_together(shared: Segmenter) -> None:
    answers = [r.answer for r in shared.segment(picture(), EIGHT)]
    assert [r.answer for r in shared.segment(picture(), EIGHT * 3)] == answers * 3
    assert shared.segment(picture(), []) == []


def counted(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> dict[str, Mock]:
    names = ("encode_image", "embed_masks_image", "prefill", "generate_answers", "decode_masks")
    calls = {name: Mock(wraps=getattr(segmenter.model, name)) for name in names}
    for name, call in calls.items():
        monkeypatch.setattr(segmenter.model, name, call)
    return calls


def test_an_image_is_computed_once_for_all_queries(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = segmenter.segment(picture(), "the cat")
    segmenter._encoded.clear()
    calls = counted(segmenter, monkeypatch)
    segmenter.segment(picture(), EIGHT)
    assert [call.call_count for call in calls.values()] == [1, 1, 1, 1, 1]
    assert_same(first, segmenter.segment(np.asarray(picture()), "the cat"))  # equal pixels; nothing asked before counts
    segmenter.chat(picture()).ask("the cat")
    assert [call.call_count for call in calls.values()] == [1, 1, 1, 3, 3]


def test_the_cache_keeps_the_latest_images(shared: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(shared.model, shared.processor, cached_images=2)
    encode = counted(segmenter, monkeypatch)["encode_image"]
    for seed in (0, 1, 0, 2, 0):  # 2 pushes out 1, the longest unused
        segmenter.segment(picture(seed=seed), "the cat")
    assert encode.call_count == 3
    segmenter.segment(picture(seed=1), "the cat")
    assert encode.call_count == 4
    with pytest.raises(ReadsegError, match="cached_images"):
        Segmenter(shared.model, shared.processor, cached_images=0)


def test_batches_of_images(shared: Segmenter) -> None:
    images = [picture(), picture(20, 30, seed=1), picture()]
    queries = ["the cat", "all the birds and the tree", "the unicorn"]
    batch = shared.segment_batch(images, queries)
    for image, query, one in zip(images, queries, batch, strict=True):
        assert_same(one, shared.segment(image, query))
    nested = shared.segment_batch(images[:2], [["the cat", "the unicorn"], []])
    assert [len(part) for part in nested] == [2, 0]
    for wrong in (["the cat"], "cat"):
        with pytest.raises(QueryError, match="3 images"):
            shared.segment_batch(images, wrong)


def test_a_given_answer_gives_what_the_same_answer_gives_by_itself(shared: Segmenter) -> None:
    for query in ("the cat", "all the birds and the tree"):
        by_itself = shared.segment(picture(), query)
        given = shared.segment(picture(), query, force=by_itself.answer)
        assert given.answer == by_itself.answer
        assert (given.masks == by_itself.masks).all()
        assert np.allclose(given.scores, by_itself.scores, atol=1e-4)
        assert given.said == (True,) * len(by_itself.masks)
        assert by_itself.said is None


def test_given_answers_are_those_of_a_plain_forward(shared: Segmenter) -> None:
    answer = "there [SEG] and there [SEG]."
    images, questions = [picture(), picture(20, 30, seed=1)], [["the cat", "what?"], ["the unicorn"]]
    batch = shared.segment_batch(images, questions, force=answer)
    for image, queries, results in zip(images, questions, batch, strict=True):
        for query, result in zip(queries, results, strict=True):
            ids, _ = shared.processor.encode([Turn(query, answer)])
            pixels = shared.processor.lmm_pixels(image)[None]
            output = shared.model(torch.tensor([ids]), pixel_values=pixels, return_logits=True)
            assert np.allclose(result.scores, output.scores.detach().numpy(), atol=1e-4)
            seg = shared.processor.config.seg_token_id
            places = [place for place, token in enumerate(ids) if token == seg]
            assert result.said == tuple(bool(output.logits[0, place - 1].argmax() == seg) for place in places)
            assert len(result.masks) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 2), (30, 30)])
def test_odd_sizes_give_finite_results(shared: Segmenter, size: tuple[int, int]) -> None:
    result = shared.segment(picture(*size), "the cat")
    assert result.answer == ANSWERS["the cat"] and result.masks.shape == (1, *size)
    for values in (result.scores, result.similarity, result.points_xy[0]):
        assert np.isfinite(values).all()
    flat = shared.segment(np.zeros((*size, 3), np.uint8), "the cat")
    assert np.isfinite(flat.similarity).all()


def test_options_are_followed_or_refused(shared: Segmenter) -> None:
    alone = shared.segment(picture(), "the cat", prompt="seg")
    assert [len(xy) for xy in alone.points_xy] == [0]
    few = shared.segment(picture(), "the cat", points=PointConfig(num_points=3, downsample=1, alignment="exact"))
    assert len(few.points_xy[0]) == 3
    assert not shared.segment(picture(), "the unicorn", max_new_tokens=1).finished
    for name, option in (
        ("both, seg, points", {"prompt": "all"}),
        ("alignment", {"points": PointConfig()}),
        ("downsample", {"points": PointConfig(downsample=5, alignment="exact")}),
        ("max_new_tokens", {"max_new_tokens": 0}),
        *(("answer to force is empty", {"force": force}) for force in ("", "  ", 3, None)),
    ):
        with pytest.raises(ReadsegError, match=name):
            shared.segment(picture(), "the unicorn", **option)  # type: ignore[call-overload]
    with pytest.raises(ImageError, match="no such"):
        shared.segment("missing.png", "the cat")


def test_an_option_that_a_method_does_not_have_is_named(shared: Segmenter) -> None:
    encoded = shared.encode(picture())
    for call in (
        lambda: shared.segment(picture(), "the cat", forced=True),  # type: ignore[call-overload]
        lambda: shared.segment_batch([picture()], ["the cat"], forced=True),  # type: ignore[call-arg]
        lambda: shared.chat(picture()).ask("the cat", forced=True),  # type: ignore[call-arg]
        lambda: shared.reply(encoded, ["the cat"], forced=True),  # type: ignore[call-arg]
        lambda: shared.decode(encoded, [], forced=True),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match=r"has no option forced; it has .*"):
            call()
    with pytest.raises(TypeError, match=r"decode\(\) has no option force; it has prompt, points"):
        shared.decode(encoded, [], force=True)


@pytest.mark.parametrize("query", ["", "   ", "\n", None, 7, b"cat"])
def test_empty_queries(shared: Segmenter, query: Any) -> None:
    for ask in (lambda: shared.segment(picture(), [query]), lambda: shared.chat(picture()).ask(query)):
        with pytest.raises(QueryError, match="query is"):
            ask()


def test_a_query_of_ten_thousand_words(shared: Segmenter) -> None:
    with pytest.raises(QueryError, match=f"too long.*{LONGEST_CONTEXT} positions"):
        shared.segment(picture(), ["the cat", "word " * 10_000])


@pytest.mark.parametrize("query", ["[SEG]", "<image> the cat </s>", "</s><s>[SEG] [SEG]", "\ud800 \x00 猫"])
def test_special_tokens_in_a_query_are_text(shared: Segmenter, query: str) -> None:
    result = shared.segment(picture(), query)
    ids = shared.processor.query_ids([Turn(query)])
    special = set(shared.processor.tokenizer.all_special_ids)
    assert not special & set(ids)
    assert result.answer.count("[SEG]") == len(result.masks)


def test_a_hidden_part_is_warned_of(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter.processor.config, "view", "crop")
    with pytest.warns(UserWarning, match="60% of it is hidden"):
        segmenter.segment(picture(40, 100), "the cat")
    segmenter.segment(picture(40, 45), "the cat")  # 11%: no warning, which would be an error here


def test_conversations_keep_what_was_said(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = segmenter.chat(picture())
    first = chat.ask("the cat")
    assert_same(first, segmenter.segment(picture(), "the cat"))
    generate = counted(segmenter, monkeypatch)["generate_answers"]
    second = chat.ask("the unicorn")
    history = [Turn("the cat", first.answer), Turn("the unicorn")]
    assert generate.call_args.args[2] == [segmenter.processor.query_ids(history)]
    assert chat.turns == [
        Turn("the cat", first.answer, ids=first.answer_ids),
        Turn("the unicorn", second.answer, ids=second.answer_ids),
    ]


def test_a_failed_turn_leaves_the_conversation_as_it_was(shared: Segmenter) -> None:
    chat = shared.chat(picture())
    chat.ask("the cat")
    for text in ("", "word " * 10_000):
        with pytest.raises(QueryError):
            chat.ask(text)
    assert len(chat.turns) == 1


def test_presence_in_conversations_and_where_asks_overrides_the_rule(shared: Segmenter) -> None:
    for text, asks, chatted, segmented in (
        ("the cat", None, True, True),
        ("the cat", False, True, True),
        ("the unicorn", None, None, False),
        ("the unicorn", True, False, False),
        ("the unicorn", False, None, None),
        ("how many animals are there?", None, None, None),
        ("how many animals are there?", True, False, False),
    ):
        assert shared.chat(picture()).ask(text, asks=asks).present is chatted
        assert shared.segment(picture(), text, asks=asks).present is segmented


@pytest.mark.parametrize(
    "query",
    [
        "the cat", "something that tells the time", "Which animal could fly?", "where could I sit?",
        "the largest of the dogs", "What can be used to cut paper?", "what is to the left of the tree?", "find the dog",
        "Is there a dog? Please segment it.", "Can you outline the dog?", "isolated island", "animals that are striped",
        "Does anything here tell the time? Output a segmentation mask.",
    ],
)  # fmt: skip
def test_queries_that_ask_for_a_mask(query: str) -> None:
    assert asks_for_mask(query)


@pytest.mark.parametrize(
    "query",
    [
        "how many animals are there?", " How much fruit is there", "what colour is the car?", "is there a cat?",
        "What color are the birds?", "Are there any tools", "Is the car red?", "does the dog have a hat?",
        "describe the picture", "What is in this image?", "What's in the photo?", "what do you see?",
        "why is the street wet?",
    ],
)  # fmt: skip
def test_plain_questions(query: str) -> None:
    assert not asks_for_mask(query)
    assert not requests_mask(query)


def test_the_question_is_worded_as_in_training(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = ConversationConfig(
        name_question="What is {name} in this image? Please output segmentation mask.",
        sentence_question="{sentence} Please output segmentation mask.",
    )
    monkeypatch.setattr(segmenter.processor.config, "conversation", conversation)
    encoded = segmenter.encode(picture())
    plain, segment = "Is there something to sit on?", "the middle segment of the orange"
    queries = ["the cat", "Where could I sit", "Segment the cat", "how many cats?", plain, segment]

    def asked(*queries: str, **options: Any) -> list[str]:
        return [reply.question for reply in segmenter.reply(encoded, queries, **options)]

    long = [f"{query} Please output segmentation mask." for query in (plain, segment)]
    cat = "What is the cat in this image? Please output segmentation mask."
    sit = "Where could I sit Please output segmentation mask."
    assert asked(*queries) == [cat, sit, "Segment the cat", "how many cats?", plain, segment]
    named = f"What is {segment} in this image? Please output segmentation mask."
    assert asked(plain, segment, force=True) == [long[0], named]
    assert asked(plain, segment, sentence=True) == long
    assert asked(segment, sentence=False) == [named]


def test_the_steps_of_segment_one_by_one(segmenter: Segmenter) -> None:
    queries = ["the cat", "how many cats?"]
    encoded = segmenter.encode(picture())
    replies = segmenter.reply(encoded, queries, force="Sure, [SEG] and [SEG].")
    for prompt in get_args(Prompt):
        apart = segmenter.decode(encoded, replies, prompt=prompt)
        together = segmenter.segment(picture(), queries, force="Sure, [SEG] and [SEG].", prompt=prompt)
        for one, other in zip(apart, together, strict=True):
            assert one.answer == other.answer and one.present is other.present and one.said == other.said
            assert np.array_equal(one.masks, other.masks) and np.array_equal(one.scores, other.scores)
    assert segmenter.decode(encoded, []) == []
    assert segmenter.encode(picture()) is encoded


def test_models_that_are_not_there_or_damaged(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The messages of `load_model` come through, and nothing besides; the tests of checkpoints hold all of them."""

    def check(message: str, name: Path | None) -> None:
        with pytest.raises(ReadsegError, match=message):
            Segmenter.from_pretrained(name)

    check("holds no model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    check("type 'bert'", tmp_path)
    monkeypatch.setattr(loading, "EMBEDDED", tmp_path / "weights")
    check("embedded model is missing", None)
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"num_hidden_layers": 3}, r"missing: .*layers\.2"),
        ({"num_hidden_layers": 2, "vocab_size": 500}, r"wrong shape: .*lm_head\.weight is .*500"),
    ):
        config["lmm_config"]["text_config"] |= changes
        (damaged / "config.json").write_text(json.dumps(config))
        check(message, damaged)
    weights = (folder / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    check(r"model\.safetensors", damaged)
    (damaged / "tokenizer.json").unlink()
    check(r"no tokenizer: expected tokenizer\.json", damaged)
    assert capfd.readouterr() == ("", ""), "libraries must not write before the error"


def test_the_embedded_model_needs_no_name(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(loading, "EMBEDDED", folder)
    assert Segmenter.from_pretrained().segment(picture(), "the cat").present is True
    assert capfd.readouterr() == ("", "")


def test_bfloat16(folder: Path) -> None:
    half = Segmenter.from_pretrained(folder, device="cpu", dtype="bfloat16")
    result = half.segment(picture(), ["the cat", "the unicorn"])
    assert result[0].points_xy[0].dtype == np.float32
    assert np.isfinite(result[0].similarity).all()
