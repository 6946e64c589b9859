"""Token ids of parts C, D and E: ours against the legacy tokenizer's that the released weights were trained with.

Labels are compared where the reference's are those of answers (part E's are arbitrary). Where ours differ on purpose
the test says why. No weights are needed.
"""

from __future__ import annotations

from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from parity.released_cases import (
    IGNORED,
    IMAGE_PLACE,
    PAD,
    collapsed,
    part_with,
    pieces_of,
    processor_alone,
    read_json,
    stored_form,
    turns_of,
    unpadded,
)
from readseg.core.types import Turn
from readseg.model.families import IM_END, IM_START, SEG
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import ASSISTANT, USER
from readseg.model.tokenizer import MODEL_FILE

OTHERS = ("LISA", "SESAME", "GSVA", "GLaMM")


def rows_of(tensors: dict[str, Tensor], ids: str, mask: str) -> list[list[int]]:
    return [unpadded(row, kept) for row, kept in zip(tensors[ids], tensors[mask], strict=True)]


def learned(labels: list[int]) -> list[int]:
    return [label for label in labels if label != IGNORED]


@pytest.fixture(scope="module")
def tokenizer_folder(reference: Path) -> Path:
    return reference / "C_read" / "ckpt"


@pytest.fixture(scope="module")
def read(tokenizer_folder: Path) -> ReadProcessor:
    part_with(tokenizer_folder, MODEL_FILE)
    return processor_alone(tokenizer_folder, "read")


def names_of(ids: list[int], processor: ReadProcessor, folder: Path) -> list[str]:
    """As the reference lists ids: pieces and added tokens by name, the image as the unknown piece."""
    pieces = pieces_of(folder)
    added = {index: token for token, index in processor.tokenizer.added.items()}
    return [
        added[token] if token in added else pieces.IdToPiece(pieces.unk_id() if token == IMAGE_PLACE else token)
        for token in ids
    ]


# -- part D ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(reference: Path) -> Path:
    return part_with(reference / "D_data", "index.json", "data.safetensors")


@pytest.fixture(scope="module")
def conversations(folder: Path) -> dict[str, Any]:
    return read_json(folder / "index.json")["conversations"]


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "data.safetensors")


def test_conversations(conversations: dict[str, Any], tensors: dict[str, Tensor], read: ReadProcessor) -> None:
    rows = rows_of(tensors, "conv.input_ids", "conv.attention_mask")
    labels = rows_of(tensors, "conv.labels", "conv.attention_mask")
    assert rows and any(learned(row) for row in labels)
    parts = zip(rows, labels, conversations["prompts"], conversations["replaced"], strict=True)
    for row, theirs, prompt, replaced in parts:
        assert stored_form(read, prompt) == (row, theirs), prompt
        assert stored_form(read, replaced) == (row, theirs), replaced


def test_names_of_the_pieces(conversations: dict[str, Any], read: ReadProcessor, tokenizer_folder: Path) -> None:
    prompts = conversations["prompts"]
    assert prompts
    parts = zip(prompts, conversations["tokens"], conversations["supervised_tokens"], strict=True)
    for prompt, names, supervised in parts:
        ids, labels = stored_form(read, prompt)
        assert names_of(ids, read, tokenizer_folder) == names, prompt
        assert names_of(learned(labels), read, tokenizer_folder) == supervised, prompt


def test_left_padded_rows(conversations: dict[str, Any], tensors: dict[str, Tensor], read: ReadProcessor) -> None:
    ids, mask = tensors["conv.left.input_ids"], tensors["conv.left.attention_mask"]
    assert not mask.all()
    for row, kept, prompt in zip(ids, mask, conversations["prompts"], strict=True):
        ours, _ = stored_form(read, prompt)
        pads = len(row) - len(ours)
        assert row.tolist() == [PAD] * pads + ours, prompt
        assert kept.tolist() == [False] * pads + [True] * len(ours), prompt


def test_prompts_to_answer(conversations: dict[str, Any], tensors: dict[str, Tensor], read: ReadProcessor) -> None:
    rows = rows_of(tensors, "conv.query.left.input_ids", "conv.query.left.attention_mask")
    assert rows
    for row, prompt in zip(rows, conversations["query_prompts"], strict=True):
        turns, _ = turns_of(prompt, read.config.conversation)
        assert turns[-1].answer is None
        assert stored_form(read, prompt)[0] == row, prompt
        assert collapsed(read, [*read.prefix_ids(), *read.query_ids(turns)])[0] == row, prompt


def test_another_tokenizer_gives_other_ids(
    conversations: dict[str, Any], tensors: dict[str, Tensor], read: ReadProcessor
) -> None:
    """Ids without the legacy behaviour are stored too: to have them would be the mistake that this guards against."""
    other = tensors.get("conv.input_ids_legacy_false")
    assert other is not None
    ours = [stored_form(read, prompt)[0] for prompt in conversations["prompts"]]
    assert any(row != theirs[: len(row)].tolist() for row, theirs in zip(ours, other, strict=True))


def edge_of(conversations: dict[str, Any], name: str) -> tuple[list[int], list[str]]:
    """Ids of an edge case, and the names of what is learned in it."""
    edge = conversations["edge"][name]
    (ids,) = edge["ids"]
    return ids, edge["supervised"]


def question_of(ids: list[int], processor: ReadProcessor, folder: Path) -> str:
    """The words of a stored question, its [SEG] among them."""
    added, pieces = processor.tokenizer.added, pieces_of(folder)
    if added[IM_END] in ids:
        ids = ids[len(ids) - ids[::-1].index(added[IM_END]) :]
    text = ""
    for is_seg, stretch in groupby(ids, key=lambda token: token == added[SEG]):
        text += f" {SEG} " if is_seg else pieces.DecodeIds([token for token in stretch if token < pieces.vocab_size()])
    return text.partition(ASSISTANT)[0].rpartition(USER)[2].strip()


def answer_of(supervised: list[str]) -> str:
    """The words of an answer from the names of its ids."""
    return "".join(supervised[:-1]).replace("▁", " ").strip()


def test_seg_in_a_question_stays_text(
    conversations: dict[str, Any], read: ReadProcessor, tokenizer_folder: Path
) -> None:
    """The reference makes it a token, and so asks for a mask that nobody said.

    Only a model says [SEG]: in a user's words ours are its letters, as are those of any other token. All before it is
    the same, and so is what is learned.
    """
    theirs, supervised = edge_of(conversations, "[SEG] in the question too")
    seg = read.config.seg_token_id
    question = question_of(theirs, read, tokenizer_folder)
    assert SEG in question
    ids, labels = collapsed(read, *read.encode([Turn(question, answer_of(supervised))]))
    assert ids.count(seg) == supervised.count(SEG) == theirs.count(seg) - question.count(SEG)
    same = theirs.index(seg)
    assert ids[:same] == theirs[:same]
    assert names_of(learned(labels), read, tokenizer_folder) == supervised
    assert ids[-len(supervised) :] == theirs[-len(supervised) :]


@pytest.mark.parametrize("name", ["no image token", "two images"])
def test_a_conversation_has_one_image(
    conversations: dict[str, Any], read: ReadProcessor, tokenizer_folder: Path, name: str
) -> None:
    """The reference encodes what its model cannot run; ours has always one image. The words are the same."""
    theirs, supervised = edge_of(conversations, name)
    question = question_of(theirs, read, tokenizer_folder)
    ids, labels = collapsed(read, *read.encode([Turn(question, answer_of(supervised))]))
    around = {IMAGE_PLACE, *(read.tokenizer.added[token] for token in (IM_START, IM_END))}
    assert ids.count(IMAGE_PLACE) == 1 != theirs.count(IMAGE_PLACE)
    assert [token for token in ids if token not in around] == [token for token in theirs if token not in around]
    assert names_of(learned(labels), read, tokenizer_folder) == supervised


def test_labels_follow_the_structure(conversations: dict[str, Any], read: ReadProcessor) -> None:
    """The reference searches for "ASSISTANT: " and fails where an answer holds it, and where there is no answer."""
    edge = conversations["edge"]
    assert all("AssertionError" in edge[name] for name in ("answer None", "ASSISTANT: inside the answer"))
    asked = Turn("Good morning")
    prompt = read.prompt_ids([asked])
    assert read.encode([asked]) == (prompt, [IGNORED] * len(prompt))
    ids, labels = read.encode([Turn(asked.question, "They call me ASSISTANT: that is all.")])
    assert ids[: len(prompt)] == prompt
    assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]


# -- part C ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_folder(reference: Path) -> Path:
    return part_with(reference / "C_read", "index.json", "corrected.json")


def test_conversations_of_part_c(read_folder: Path, read: ReadProcessor) -> None:
    index, corrected = read_json(read_folder / "index.json"), read_json(read_folder / "corrected.json")
    ids_compared = labels_compared = 0
    for name, record in [*index.items(), *((f"{name}.corrected", record) for name, record in corrected.items())]:
        file = read_folder / f"{name}.safetensors"
        texts = record.get("conversations")
        tensors = load_file(file) if texts and file.is_file() else {}
        if "input_ids" not in tensors:
            continue
        rows = rows_of(tensors, "input_ids", "attention_masks")
        ours = [stored_form(read, text) for text in texts]
        assert [ids for ids, _ in ours] == rows, name
        ids_compared += len(rows)
        if "labels" in tensors:
            assert [labels for _, labels in ours] == rows_of(tensors, "labels", "attention_masks"), name
            labels_compared += len(rows)
        if "common_prefix_tokens" in record:
            assert common_prefix([ids for ids, _ in ours]) == record["common_prefix_tokens"], name
    assert ids_compared and labels_compared


def common_prefix(rows: list[list[int]]) -> int:
    """How many first ids are the same in all rows, padded as they are stored."""
    longest = max(len(row) for row in rows)
    columns = zip(*(row + [PAD] * (longest - len(row)) for row in rows), strict=True)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))


def test_prompts_of_generations(read_folder: Path, read: ReadProcessor, tokenizer_folder: Path) -> None:
    """The question is not stored as text: its ids, read as text and encoded by us, are themselves again."""
    pieces, compared = pieces_of(tokenizer_folder), 0
    for file in sorted(read_folder.glob("C3_*.safetensors")):
        ids = load_file(file)["input_ids"][0].tolist()
        ids = ids[next(place for place, token in enumerate(ids) if token != PAD) :]
        text = pieces.DecodeIds(ids[ids.index(IMAGE_PLACE) + 2 :])
        question, assistant, rest = text.partition(" ASSISTANT:")
        assert assistant and not rest
        assert collapsed(read, read.prompt_ids([Turn(question)]))[0] == ids, file.name
        compared += 1
    assert compared


# -- part E ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_prompts_of_part_e(reference: Path, name: str) -> None:
    folder = part_with(reference / "E_other" / name, "index.json", "vectors.safetensors")
    processor = processor_alone(folder / "ckpt", name.lower())
    tensors, texts = load_file(folder / "vectors.safetensors"), read_json(folder / "index.json")["prompts"]
    rows = rows_of(tensors, "input_ids", "attention_masks")
    assert rows
    assert [stored_form(processor, text)[0] for text in texts] == rows
    for text in texts:
        ids, labels = stored_form(processor, text)
        said = text.rpartition("ASSISTANT: ")[2]
        assert all(
            learned(labels).count(processor.tokenizer.added[token]) == said.count(token)
            for token in processor.config.conversation.answer_tokens
        ), text
        assert ids[-len(learned(labels)) :] == learned(labels), text
