"""The legacy tokenizer: every id that a conversation gets, compared to SentencePiece used by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.model.families import LLAVA_V1
from readseg.model.tokenizer import LegacyTokenizer
from released import ADDED, added_ids, pieces, processor_of, tokenizer_model

BASE = pieces().vocab_size()
BOS, EOS = 1, 2
families = pytest.mark.parametrize("family", ["read", "gsva", "glamm"])
quickly = settings(max_examples=60, deadline=None, derandomize=True)

# What users write, and what could be taken for a token: pieces of SentencePiece, its sign for a space, added tokens.
ODD = ("[SEG]", "[REJ]", "<s>", "</s>", "<unk>", "<image>", "<im_start>", "<im_end>", "<p>", "</p>", "<0x0A>", "\u2581")
SPACES = (" ", "  ", "\n", "\t", " \n ", "\u3000", "\u00a0")
WORDS = ("cup", "the", "red cup", "ASSISTANT:", "USER:", ".", "don't", "0", "d\u00e9j\u00e0", *"\u65e5\U0001f600")
texts = st.lists(st.sampled_from(ODD + SPACES + WORDS) | st.text(max_size=3), min_size=1, max_size=8).map("".join)
questions = texts.filter(lambda text: text.strip())


def by_hand(family: str, turns: list[Turn]) -> list[int]:
    """Text between two tokens is encoded by itself; an added token takes the space around it away."""
    answer_tokens = {"gsva": r"\[SEG\]|\[REJ\]", "glamm": r"\[SEG\]|<p>|</p>"}.get(family, r"\[SEG\]")
    parts: list[str | int] = [BOS]
    added = added_ids(family)
    image = processor_of(family).config.image_token_id
    behind = " provides an overview of the picture.\n" if family == "glamm" else "\n"
    parts += [f"{LLAVA_V1} USER: " + ("The " if family == "glamm" else ""), added["<im_start>"]]
    parts += [image] * 16 + [added["<im_end>"], behind]
    for place, turn in enumerate(turns):
        question, answer = turn.question, turn.answer
        if place:
            parts += ["USER: "]
        parts += [f"{question.strip()} ASSISTANT:"]
        if answer is not None:
            # Outside the answer nothing that is written is a token.
            for part in re.split(f"({answer_tokens})", f" {answer.strip()}"):
                parts.append(added[part] if re.fullmatch(answer_tokens, part) else part)
            parts.append(EOS)
    joined: list[str | int] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    ids: list[int] = []
    for place, part in enumerate(joined):
        if isinstance(part, int):
            ids.append(part)
            continue
        if joined[place - 1] in added.values():
            part = part.lstrip()
        if place + 1 < len(joined) and joined[place + 1] in added.values():
            part = part.rstrip()
        ids += pieces().EncodeAsIds(part) if part else []
    return ids


@families
@given(st.lists(st.tuples(questions, texts), min_size=1, max_size=3))
@example([("where is it?", "it is the cup [SEG].")])
@example([("where is it?", "[SEG]")])
@example([("where  is\n\nit", "[SEG] [SEG], [SEG]\n[SEG] and  the\u2581 dog")])
@example([("\u2581", "\u2581\u2581x \u2581")])
@example([("is it [SEG]?", "")])
@quickly
def test_a_conversation_has_the_ids_that_training_gave_it(family: str, said: list[tuple[str, str]]) -> None:
    """Answers are learned, from their first id to their end token, and nothing else."""
    processor = processor_of(family)
    turns = [Turn(*turn) for turn in said]
    ids, labels = processor.encode(turns)
    assert ids == by_hand(family, turns)
    place = 0
    for count, turn in enumerate(turns, start=1):
        prompt = by_hand(family, [*turns[: count - 1], Turn(turn.question)])
        begin, end = len(prompt), len(by_hand(family, turns[:count]))
        assert ids[:begin] == prompt
        assert labels[place:begin] == [-100] * (begin - place)
        assert labels[begin:end] == ids[begin:end]
        place = end
    assert place == len(ids) and labels[-1] == EOS


@families
@given(question=questions, answer=texts)
@example("\u2581 x", "y")
@example("\n", "y")
@quickly
def test_the_prompt_is_prefix_and_query(family: str, question: str, answer: str) -> None:
    processor = processor_of(family)
    if not question.strip():
        with pytest.raises(ReadsegError, match="question is empty"):
            processor.prompt_ids([Turn(question)])
        return
    for turns in ([Turn(question)], [Turn("first?", answer), Turn(question)], [Turn(question, answer)]):
        prompt = processor.prompt_ids(turns)
        assert prompt == by_hand(family, [*turns[:-1], Turn(question)])
        assert prompt == processor.prefix_ids() + processor.query_ids(turns)
    prefix = processor.prefix_ids()
    assert prefix[-1] == added_ids(family)["<im_end>"]
    assert prefix.count(processor.config.image_token_id) == 16


@families
@given(questions)
@quickly
def test_what_a_user_writes_is_never_a_token(family: str, question: str) -> None:
    processor = processor_of(family)
    query = processor.query_ids([Turn(question)])
    assert all(EOS < token < BASE for token in query)


@families
@given(texts)
@example("the cup [SEG], the saw [SEG] and [SEG] [SEG].")
@example("it's the cup [SEG] (left)")
@example("no   cup,\nbut [SEG]")
@quickly
def test_an_answer_keeps_its_words(family: str, answer: str) -> None:
    processor = processor_of(family)
    turn = Turn("where?", answer)
    ids = processor.encode([turn])[0][len(processor.prompt_ids([turn])) :]
    shown = processor.decode(ids)

    def words(text: str) -> str:
        return "".join(text.replace("\u2581", " ").split())

    assert words(shown) == words(answer)
    assert processor.answer_ids([turn]) == ids[:-1]
    assert processor.decode(ids[:-1]) == shown


@pytest.mark.parametrize(
    "answer",
    [
        *("It is the cup [SEG].", "[SEG]", "[SEG].", "Sure, the segmentation result is [SEG].", "there is no saw."),
        "there is no saw, but there is a dog [SEG] and the cup [SEG].",
    ],
)
def test_plain_answers_go_there_and_back(answer: str) -> None:
    processor = processor_of("read")
    assert processor.decode(processor.answer_ids([Turn("where?", answer)])) == answer


def test_a_token_takes_the_space_around_it_away() -> None:
    processor = processor_of("read")
    seg = added_ids("read")["[SEG]"]
    texts = ("a [SEG] b", "a[SEG]b", "a  [SEG]\n b", "a\t[SEG]b")
    ids = {tuple(processor.answer_ids([Turn("where?", text)])) for text in texts}
    assert ids == {(*pieces().EncodeAsIds("a"), seg, *pieces().EncodeAsIds("b"))}
    # The dummy space before "." makes it other ids than those of a "." behind a word.
    assert processor.answer_ids([Turn("where?", "[SEG].")]) == [seg, *pieces().EncodeAsIds(".")]


# -- the tokenizer by itself -------------------------------------------------------------------------------------------


def tokenizer(family: str = "read") -> LegacyTokenizer:
    return LegacyTokenizer(tokenizer_model(), added_ids(family))


def test_tokens_have_ids_and_text_has_none() -> None:
    legacy = tokenizer("gsva")
    ids = added_ids("gsva")
    assert {token: legacy.convert_tokens_to_ids(token) for token in ids} == ids
    assert [legacy.convert_tokens_to_ids(token) for token in ("<unk>", "<s>", "</s>")] == [0, BOS, EOS]
    assert legacy.convert_tokens_to_ids("[NONE]") == legacy.unk_token_id == 0
    assert list(legacy.added) == list(ADDED["gsva"])
    assert len(legacy) == BASE + 4
    assert len(LegacyTokenizer(tokenizer_model(), {})) == BASE
    assert len(LegacyTokenizer(tokenizer_model(), {"[SEG]": BASE + 9})) == BASE + 10
    assert not set(legacy.encode("[SEG] <s> </s> <im_start>")) & {0, BOS, EOS, *ids.values()}


def test_decode_leaves_tokens_out() -> None:
    legacy = tokenizer()
    text = legacy.encode("the red cup")
    assert legacy.decode([BOS, *text, added_ids("read")["[SEG]"], EOS], skip_special_tokens=True) == "the red cup"
    assert legacy.decode([]) == ""


@given(st.text())
@quickly
def test_any_text_goes_there_and_back(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text.replace("\u2581", " ")


def test_other_added_tokens_follow_the_model() -> None:
    other = tokenizer("glamm").with_added(("[SEG]", "<im_start>"))
    assert other.added == {"[SEG]": BASE, "<im_start>": BASE + 1}
    assert other.encode("the cup") == tokenizer().encode("the cup")


def test_files_give_the_same_tokenizer(tmp_path: Path) -> None:
    legacy = tokenizer("glamm")
    legacy.save_pretrained(tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"tokenizer.model", "added_tokens.json"}
    again = LegacyTokenizer.from_folder(tmp_path / "new" / "folder")
    assert (again.added, len(again)) == (legacy.added, len(legacy))
    assert (tmp_path / "new" / "folder" / "tokenizer.model").read_bytes() == tokenizer_model()
    assert json.loads((tmp_path / "new" / "folder" / "added_tokens.json").read_text()) == added_ids("glamm")
    (tmp_path / "new" / "folder" / "added_tokens.json").unlink()
    assert LegacyTokenizer.from_folder(tmp_path / "new" / "folder").added == {}


@pytest.mark.parametrize(
    "added",
    [{"a": value} for value in (BASE - 1, 0, -1, "5", float(BASE), [BASE])]
    + [{"a": BASE, "b": BASE}, {"a": BASE, "b": "5"}, {"a": None, "b": BASE}],
)
def test_ids_that_are_taken_or_none_are_an_error(added: dict[str, int]) -> None:
    with pytest.raises(ReadsegError, match=rf"added_tokens.json: .* {BASE} or more"):
        LegacyTokenizer(tokenizer_model(), added)


@pytest.mark.parametrize("model", [b"", b"garbage", b"\0" * 64, tokenizer_model()[:500], b"\x08" + tokenizer_model()])
def test_bytes_that_are_no_model_are_an_error(model: bytes) -> None:
    with pytest.raises(ReadsegError, match=r"tokenizer.model is no SentencePiece model"):
        LegacyTokenizer(model, {})


def test_a_folder_without_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"holds no tokenizer: expected tokenizer.json or tokenizer.model"):
        LegacyTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(ReadsegError, match=rf"{tmp_path}: tokenizer.model is no"):
        LegacyTokenizer.from_folder(tmp_path)
