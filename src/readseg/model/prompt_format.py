r"""The layout of a conversation, as pieces of text and special tokens: which of them is prompt, which is answer.

    {system} USER: <im_start><image><im_end>\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: ...

Text that a user wrote is always text: a piece says by its type what is a special token, nobody searches for one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.model.config import ConversationConfig
from readseg.model.families import BOS, EOS, IM_END, IM_START, IMAGE, SEG

USER, ASSISTANT = "USER: ", " ASSISTANT:"


class Piece(NamedTuple):
    """Plain text, or one special token, or the known `ids` of an answer; `learned` where the model has to say it."""

    text: str
    special: bool = False
    learned: bool = False
    ids: tuple[int, ...] | None = None


def prefix(conversation: ConversationConfig) -> list[Piece]:
    r"""What stands before the first question, the same for every question on an image.

    >>> [piece.text for piece in prefix(ConversationConfig(system="Be brief."))]
    ['<s>', 'Be brief. USER: ', '<im_start>', '<image>', '<im_end>', '\n']
    """
    system = f"{conversation.system} " if conversation.system else ""
    parts = re.split(f"({IM_START}|{IMAGE}|{IM_END})", conversation.image_text)
    return [
        Piece(BOS, special=True),
        Piece(system + USER),
        *(Piece(part, special=part in (IM_START, IMAGE, IM_END)) for part in parts if part),
    ]


def dialogue(turns: Sequence[Turn], tokens: Collection[str] = (SEG,)) -> list[Piece]:
    """What follows the prefix: questions, and answers with their `tokens`; a last turn may lack its answer."""
    if not turns:
        raise ReadsegError("a conversation needs at least one question.")
    pieces: list[Piece] = []
    for index, turn in enumerate(turns):
        question = plain(turn.question)
        if not question:
            raise ReadsegError("the question is empty; say what to look for.")
        pieces += [Piece(USER)] * (index > 0) + [Piece(question), Piece(ASSISTANT)]
        if turn.ids is not None:
            generated = Piece(turn.answer or "", special=True, learned=True, ids=turn.ids)
            pieces += [generated, Piece(EOS, special=True, learned=True)]
        elif turn.answer is not None:
            pieces += answer(turn.answer, tokens)
        elif index < len(turns) - 1:
            raise ReadsegError(f"turn {index + 1} of {len(turns)} has no answer; only the last may lack one.")
    return pieces


def answer(text: str, tokens: Collection[str] = (SEG,)) -> list[Piece]:
    """An answer, with the space before it and the end token after it; the space before a [SEG] is left out.

    >>> [piece.text for piece in answer("it is the cow [SEG].")]
    [' it is the cow', '[SEG]', '.', '</s>']
    """
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", f" {plain(text)}")
    # What the pattern matched stands at odd indices; the space before it is put back when ids are decoded.
    pieces = [
        Piece(part, special=True, learned=True) if index % 2 else Piece(part.rstrip(" "), learned=True)
        for index, part in enumerate(parts[:-1])
    ]
    pieces += [Piece(parts[-1], learned=True), Piece(EOS, special=True, learned=True)]
    return [piece for piece in pieces if piece.text]


def names_question(conversation: ConversationConfig, names: Sequence[str]) -> str:
    """What a model is asked when a user wants several objects segmented with one question."""
    if not conversation.names_question:
        raise ReadsegError("this model was not trained to find several objects with one question: ask for each.")
    cleaned = [plain(name).rstrip(".") for name in names]
    if not cleaned or not all(cleaned):
        raise ReadsegError("a name is empty; say what to look for.")
    for token in conversation.answer_tokens:
        if any(token in name for name in cleaned):
            raise ReadsegError(f"a name holds {token}, which stands for an object in answers: say it in other words.")
    return conversation.names_question.replace("{names}", ", ".join(cleaned))


def names_answer(names: Sequence[str]) -> str:
    """The answer of teacher forcing to `names_question`: "Sure,a cup:[SEG], a hat:[SEG]."."""
    objects = [f"{plain(name).rstrip('.')}:{SEG}" for name in names]
    return f"Sure,{', '.join(objects)}."


def inference_question(conversation: ConversationConfig, query: str, *, sentence: bool | None = None) -> str:
    """What a model is asked when a user wants `query` segmented, a sentence or the name of a thing.

    By default a sentence is what ends like one.

    >>> inference_question(ConversationConfig(name_question="Where is {name}?"), "the cup")
    'Where is the cup?'
    """
    query = plain(query)
    if sentence is None:
        sentence = query.endswith((".", "?", "!"))
    if sentence:
        return conversation.sentence_question.replace("{sentence}", query)
    return conversation.name_question.replace("{name}", query)


def plain(text: str) -> str:
    """`writable` text without space around it."""
    return writable(text).strip()


def writable(text: str) -> str:
    """Text without what UTF-8 cannot hold: lone surrogates, as a shell passes bytes that are no text, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
