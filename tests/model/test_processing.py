from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.model.config import ConversationConfig
from readseg.model.families import TINY
from readseg.model.processing import SAM_MEAN, SAM_STD, ReadProcessor
from readseg.model.tokenizer import LegacyTokenizer, build_tiny_tokenizer
from released import processor_of
from small import TEXTS, picture, small_config, small_processor, small_tokenizer

SPECIAL = set(range(len(TINY.added_tokens)))
PROCESSOR = small_processor()


def answer_ids(processor: ReadProcessor, answer: str) -> list[int]:
    """What is learned of an answer."""
    _, labels = processor.encode([Turn("where?", answer)])
    return [label for label in labels if label != -100]


def test_special_tokens_are_the_first_ids() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.convert_ids_to_tokens(sorted(SPECIAL)) == list(TINY.added_tokens)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = build_tiny_tokenizer(iter(TEXTS), vocab_size=300)
    assert again.get_vocab() == small_tokenizer().get_vocab()
    assert len(again) <= 300


def test_the_prompt_is_prefix_and_query() -> None:
    processor = small_processor()
    turns = [Turn("where?", "here [SEG]."), Turn("and then?")]
    prompt = processor.prompt_ids(turns)
    assert prompt == processor.prefix_ids() + processor.query_ids(turns)
    assert prompt.count(processor.config.image_token_id) == processor.config.num_image_tokens
    assert prompt.count(processor.config.seg_token_id) == 1


def test_training_sees_what_inference_asks_and_learns_the_answer_only() -> None:
    processor = small_processor(conversation=ConversationConfig(system="Be brief."))
    turn = Turn("where is the cup?", "it is the red cup [SEG].")
    ids, labels = processor.encode([turn])
    prompt, answer = processor.prompt_ids([turn]), answer_ids(processor, turn.answer or "")
    assert ids == prompt + answer
    assert labels == [-100] * len(prompt) + answer
    assert answer[-1] == processor.tokenizer.eos_token_id


def test_every_answer_of_a_conversation_is_learned() -> None:
    processor = small_processor()
    ids, labels = processor.encode([Turn("where?", "here [SEG]."), Turn("sure?", "yes.")])
    learned = [label for label in labels if label != -100]
    assert learned == answer_ids(processor, "here [SEG].") + answer_ids(processor, "yes.")
    assert len(ids) == len(labels)


def test_a_special_token_in_a_question_is_plain_text() -> None:
    processor = small_processor()
    for token in TINY.added_tokens:
        query = processor.query_ids([Turn(f"what is {token}{token} here?")])
        assert not SPECIAL & set(query)
        assert f"what is {token}{token} here?" in processor.decode(query)


@given(st.text(min_size=1).filter(str.strip))
def test_any_question_can_be_asked(text: str) -> None:
    query = PROCESSOR.query_ids([Turn(text)])
    assert not SPECIAL & set(query)
    assert PROCESSOR.decode(query) == f"{text.strip()} ASSISTANT:"


@pytest.mark.parametrize(
    "answer", ["it is the red cup [SEG].", "[SEG]", "the cup [SEG], the saw [SEG] and [SEG] [SEG].", "there is none."]
)
def test_answers_go_there_and_back(answer: str) -> None:
    processor = small_processor()
    ids = answer_ids(processor, answer)
    assert ids.count(processor.config.seg_token_id) == answer.count("[SEG]")
    assert processor.decode(ids) == answer


def test_only_seg_is_a_token_in_an_answer() -> None:
    processor = small_processor()
    ids = answer_ids(processor, "a </s> <image> [SEG]")
    learned = [processor.config.seg_token_id, processor.tokenizer.eos_token_id]
    assert [token for token in ids if token in SPECIAL] == learned


@pytest.mark.parametrize("hw", [(64, 32), (32, 64), (7, 3), (1, 50)])
def test_mask_pixels_are_normalised_and_padded_with_zeros(hw: tuple[int, int]) -> None:
    processor = small_processor()
    image = picture(*hw)
    pixels = processor.mask_pixels(image)
    height, width = processor.frame(image).mask_hw
    assert pixels.shape == (3, 32, 32)
    assert not pixels[:, height:].any()
    assert not pixels[:, :, width:].any()
    view = np.asarray(processor.frame(image).mask_view(image), dtype=np.float32)
    expected = (view - np.float32(SAM_MEAN)) / np.float32(SAM_STD)
    torch.testing.assert_close(pixels[:, :height, :width], torch.from_numpy(expected).permute(2, 0, 1))


def test_a_frame_is_the_models_view_of_an_image() -> None:
    frame = small_processor(view="letterbox").frame(picture(10, 20))
    assert (frame.hw, frame.lmm_size, frame.mask_size, frame.view) == ((10, 20), 32, 32, "letterbox")


# -- the legacy tokenizer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "legacy"])
def test_files_give_the_same_processor(tmp_path: Path, kind: str) -> None:
    own = small_processor(conversation=ConversationConfig(system="Be brief."), view="crop")
    processor = own if kind == "own" else processor_of("gsva")
    processor.save_pretrained(tmp_path)
    if kind == "legacy":
        assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.model", "added_tokens.json", "config.json"}
    turns = [Turn("where is </s> it?", "here [SEG]."), Turn("and?", "no [REJ].")]
    for loaded in (ReadProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, ReadProcessor)
        assert isinstance(loaded.tokenizer, LegacyTokenizer) == (kind == "legacy")
        assert loaded.encode(turns) == processor.encode(turns)
        assert loaded.frame(picture(5, 9)) == processor.frame(picture(5, 9))


def test_another_models_tokenizer_is_an_error() -> None:
    legacy = processor_of("gsva")
    with pytest.raises(ReadsegError, match=r"\[SEG\] is"):
        ReadProcessor(small_tokenizer(), small_config(seg_token_id=9))
    assert isinstance(legacy.tokenizer, LegacyTokenizer)
    for tokens, message in ((("[REJ]", "[SEG]"), r"\[SEG\] is"), (("[SEG]",), r"\[REJ\]"), ((), r"\[SEG\]")):
        with pytest.raises(ReadsegError, match=message):
            ReadProcessor(legacy.tokenizer.with_added(tokens), legacy.config)


@pytest.mark.parametrize(
    ("family", "answer", "found"),
    [
        ("gsva", "Sure,a fox:[SEG], a heron:[REJ].", [("[SEG]", "a fox"), ("[REJ]", "a heron")]),
        ("gsva", "[SEG]", [("[SEG]", "")]),
        ("gsva", "a St. Bernard: [SEG]", [("[SEG]", "a St. Bernard")]),
        ("glamm", "<p> a fox </p> [SEG] beside <p> a ladder </p> [SEG] .", [("[SEG]", "a fox"), ("[SEG]", "a ladder")]),
        ("glamm", "It is [SEG]. </p> a <p> [SEG]", [("[SEG]", ""), ("[SEG]", "")]),
        ("read", "Sure, the segmentation result is [SEG].", [("[SEG]", "")]),
        ("read", "nothing", []),
    ],
)
def test_answers_tell_whose_each_token_is(family: str, answer: str, found: list[tuple[str, str]]) -> None:
    processor = processor_of(family)
    ids = processor.answer_ids([Turn("what?", answer)])
    assert processor.targets(ids) == found
    # Letters are no token.
    assert processor.targets(processor.tokenizer.encode("[SEG] and [REJ]")) == []


def test_what_a_model_said_goes_back_to_the_id() -> None:
    """Text does not always give the same ids again."""
    processor = small_processor()
    said = (SEG_ID := processor.config.seg_token_id, *processor.tokenizer.encode(" [SEG] "), SEG_ID)
    turns = [Turn("where?", processor.decode(said), ids=said), Turn("and then?")]
    prompt = processor.prompt_ids(turns)
    start = prompt.index(SEG_ID)
    assert tuple(prompt[start : start + len(said)]) == said
    assert prompt[start + len(said)] == processor.tokenizer.eos_token_id
