"""What a user imports: `Segmenter` answers questions about images, `Segmentation` is what it answers.

Speaks image pixels, as `images.load_image` returns them: masks (S, H, W), points (x, y), S counts the [SEG] of an
answer. Everything that does not depend on the question is computed once for an image and kept for the next one.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.utils import logging

from readseg.config import PointConfig, Prompt
from readseg.conversation import Turn, inference_question, writable
from readseg.errors import ReadsegError
from readseg.geometry import Frame
from readseg.images import load_image
from readseg.model import Answer, ReadModel
from readseg.processor import ReadProcessor
from readseg.segmentation import Segmentation

__all__ = ["Chat", "QueryError", "Segmentation", "Segmenter", "asks_for_mask", "requests_mask"]

EMBEDDED = Path(__file__).parent / "weights" / "tiny"
"""The folder of the model that comes with the package."""

_TOGETHER = 16  # questions decoded as one batch: bounds the memory of keys and values
_WORTH_A_WARNING = 0.2  # of the image's area, hidden from the language model

_REQUEST = re.compile(
    r"\b(segment\w*|segmentation|outline|highlight|locate|find|mark|show me|point (?:to|out|at))\b"
    r"|\b(?:output|give|draw|make|produce)\b.*\bmasks?\b",
    re.IGNORECASE,
)
_PLAIN_QUESTION = re.compile(
    r"^(?:how\b|count\b|why\b|when\b|describe\b|what colou?rs?\b|which colou?rs?\b"
    r"|what (?:do|can) you see|what does (?:this|the) (?:image|picture|photo|scene)"
    r"|what(?:'s| is| are) (?:there |shown |visible )?(?:in|on) (?:this|the) (?:image|picture|photo|scene)"
    r"|(?:is|are|was|were) there\b|(?:is|are|was|were|does|do|did|has|have)\b.*\?$)",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"^(?:segment|please|can|could|would|find|locate|show|mark|point|highlight|outline|where"
                      r"|what|which|who|if|identify)\b", re.IGNORECASE)  # fmt: skip


class QueryError(ReadsegError):
    """A question cannot be asked: it is empty, no text, or longer than the model's context."""


def requests_mask(text: str) -> bool:
    """Whether a text asks for a mask in so many words: "segment", "find", "outline", "show me", "output a mask".

    >>> requests_mask("Can you segment the dog?"), requests_mask("Is there a dog?")
    (True, False)
    """
    return _REQUEST.search(text) is not None


def asks_for_mask(query: str) -> bool:
    """Whether a query given to `Segmenter.segment` asks for an object, so that no [SEG] means it is not there.

    The rule: everything does, but a question that is answered in words and does not ask for a mask besides
    (`requests_mask`). Such questions are told by their form: "how ...", "count ...", "why ...", "when ...",
    "describe ...", "what colour ...", "is/are there ...", a question mark after "is/are/was/were/does/do/did/
    has/have ...", and what the whole image shows ("what is in the picture"). Where the rule errs, `asks=` decides.

    >>> [asks_for_mask(q) for q in ("something to cut paper with", "where could I sit?", "how many dogs are there?")]
    [True, True, False]
    """
    return requests_mask(query) or _PLAIN_QUESTION.search(query.strip()) is None


@dataclass(frozen=True)
class _Encoded:
    """What is known of an image before any question: its prefix's keys and values, and both models' features."""

    image: Image.Image
    frame: Frame
    prefix_ids: list[int]
    cache: DynamicCache
    h_img: Tensor
    mask_embeddings: Tensor


@dataclass(frozen=True)
class _Options:
    """How answers are made: see `Segmenter.segment`."""

    prompt: Prompt | None
    points: PointConfig | None
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt not in get_args(Prompt):
            raise ReadsegError(f"prompt must be one of {', '.join(get_args(Prompt))}; got {self.prompt!r}")
        if self.max_new_tokens < 1:
            raise ReadsegError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")


class Segmenter:
    """Answers questions about images with words and masks.

        seg = Segmenter.from_pretrained()
        out = seg.segment("desk.png", "something that tells the time")
        out.overlay().save("overlay.png")

    Args:
        model: put into evaluation mode.
        processor: of that model.
        cached_images: how many images' features and prefix are kept, the latest used; at least 1.
    """

    def __init__(self, model: ReadModel, processor: ReadProcessor, *, cached_images: int = 4) -> None:
        if cached_images < 1:
            raise ReadsegError(f"cached_images must be at least 1; got {cached_images}")
        self.model = model.eval()
        self.processor = processor
        self._cached_images = cached_images
        self._encoded: OrderedDict[tuple[int, int, bytes], _Encoded] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Segmenter:
        """Load a model: the embedded one without a name, else that of a folder or a hub id.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id "owner/model".
            device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
            dtype: such as "float32" or "bfloat16"; by default bfloat16 on a GPU and float32 on a CPU.

        Raises:
            ReadsegError: there is no such model, it is of another kind, its weights are incomplete, or the device
                or dtype is unknown.
        """
        where, precision = _device_and_dtype(device, dtype)
        source = _source(name)
        try:
            with _quiet_libraries(bar=name is not None and sys.stderr.isatty()):
                kind = PretrainedConfig.get_config_dict(source)[0].get("model_type")
                if kind != "readseg":
                    raise ReadsegError(
                        f"{source} is a model of type {kind!r}: expected type 'readseg', as this package saves it"
                    )
                folder = Path(source)
                if folder.is_dir() and not any((folder / f"tokenizer.{end}").is_file() for end in ("json", "model")):
                    raise ReadsegError(f"{source} holds no tokenizer: expected tokenizer.json or tokenizer.model in it")
                processor = ReadProcessor.from_pretrained(source)
                model = ReadModel.from_pretrained(source, dtype=precision)
        except ReadsegError:
            raise
        except Exception as error:  # hub, file, JSON and safetensors errors share no base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ReadsegError(f"cannot load a model from {source}: {reason}") from error
        return cls(model.to(where), processor)

    @overload
    def segment(
        self,
        image: Any,
        query: str,
        *,
        asks: bool | None = ...,
        prompt: Prompt | None = ...,
        points: PointConfig | None = ...,
        max_new_tokens: int = ...,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        image: Any,
        query: Sequence[str],
        *,
        asks: bool | None = ...,
        prompt: Prompt | None = ...,
        points: PointConfig | None = ...,
        max_new_tokens: int = ...,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: Any,
        query: str | Sequence[str],
        *,
        asks: bool | None = None,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
        max_new_tokens: int = 64,
    ) -> Segmentation | list[Segmentation]:
        """Answer one question about an image, or many; many are decoded together and give what single calls give.

        Args:
            image: whatever `load_image` takes: path, PIL image, numpy array (H, W, 3), bytes, binary file.
            query: the name of a thing, a description, or a question. Special tokens in it are plain text. It is
                asked in the words that the model was trained with (`conversation.inference_question`); what asks
                for a segmentation itself, or for words only, is asked as it stands.
            asks: whether a query asks for an object, so that an answer without [SEG] means that it is not there
                (`present` False, not None). By default `asks_for_mask` decides for each query.
            prompt: what prompts the mask decoder: "both" points and [SEG], "seg" or "points"; default: the model's.
            points: how points are chosen; default: the model's.
            max_new_tokens: where an answer is cut off.

        Raises:
            ImageError: the image cannot be used.
            QueryError: a query is empty, not text, or too long.
            ReadsegError: an option has no such value, or does not fit the model.

        Warns:
            UserWarning: the model's centre crop hides more than a fifth of the image.
        """
        options = _Options(prompt, points, max_new_tokens)
        queries = [query] if isinstance(query, str) else list(query)
        for text in queries:
            _check_query(text)
        encoded = self._encode(load_image(image))
        asked = [asks_for_mask(text) if asks is None else asks for text in queries]
        turns = [[Turn(self._worded(text, wanted))] for text, wanted in zip(queries, asked, strict=True)]
        results: list[Segmentation] = []
        for start in range(0, len(queries), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            results += self._answer(encoded, queries[part], turns[part], asked[part], options)
        return results[0] if isinstance(query, str) else results

    def segment_batch(
        self,
        images: Sequence[Any],
        queries: Sequence[str] | Sequence[Sequence[str]],
        *,
        asks: bool | None = None,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
        max_new_tokens: int = 64,
    ) -> list[Any]:
        """`segment` for many images: one query, or one list of queries, for each.

        Returns:
            For each image what `segment` returns: a `Segmentation`, or a list of them.

        Raises:
            ReadsegError: as `segment` does; or the numbers of images and queries differ.
        """
        if isinstance(queries, str) or len(images) != len(queries):
            raise QueryError(f"give one query, or one list of queries, for each of the {len(images)} images")
        return [
            self.segment(image, query, asks=asks, prompt=prompt, points=points, max_new_tokens=max_new_tokens)
            for image, query in zip(images, queries, strict=True)
        ]

    def chat(self, image: Any) -> Chat:
        """A conversation about one image, in which later questions may refer to earlier answers.

        Raises:
            ImageError: the image cannot be used.
        """
        return Chat(self, load_image(image))

    def _worded(self, query: str, asks: bool) -> str:
        """The query in the family's words, unless it is a plain question or asks for a segmentation itself."""
        if not asks or "segment" in query.lower():
            return query
        sentence = True if _COMMAND.match(query.strip()) else None
        return inference_question(self.processor.config.conversation, query, sentence=sentence)

    def _encode(self, image: Image.Image) -> _Encoded:
        """All that does not depend on a question; kept by the image's content, so that a copy of it is a hit."""
        frame = self.processor.frame(image)
        if frame.hidden_fraction > _WORTH_A_WARNING:
            warnings.warn(
                f"the model sees only the centre square of this {image.width} x {image.height} image; "
                f"{frame.hidden_fraction:.0%} of it is hidden: crop the image to what matters",
                UserWarning,
                stacklevel=3,
            )
        key = (*image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        processor, model = self.processor, self.model
        with torch.inference_mode():
            features = model.encode_image(processor.lmm_pixels(image)[None].to(model.device))
            prefix_ids = processor.prefix_ids()
            cache, h_img = model.prefill(prefix_ids, features)
            embeddings = model.embed_masks_image(processor.mask_pixels(image)[None].to(model.device))
        self._encoded[key] = _Encoded(image, frame, prefix_ids, cache, h_img, embeddings)
        while len(self._encoded) > self._cached_images:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _answer(
        self,
        encoded: _Encoded,
        queries: Sequence[str],
        conversations: Sequence[Sequence[Turn]],
        asked: Sequence[bool],
        options: _Options,
    ) -> list[Segmentation]:
        """Generate the answers to conversations that end in a question, and decode the masks of all their [SEG]."""
        settings = options.points or self.model.config.points
        try:
            self.model.config.check_points(settings)
        except ValueError as error:
            raise ReadsegError(str(error)) from error
        ids = [self.processor.query_ids(turns) for turns in conversations]
        limit = self.model.config.lmm_config.text_config.max_position_embeddings
        room = limit - len(encoded.prefix_ids) - options.max_new_tokens
        for query, query_ids in zip(queries, ids, strict=True):
            if len(query_ids) > room:
                raise QueryError(
                    f"the query {query[:40]!r} is too long: {len(query_ids)} tokens, with what was said before; "
                    f"{room} fit beside image and answer into the model's {limit} positions"
                )
        with torch.inference_mode():
            answers = self.model.generate_answers(
                encoded.prefix_ids, encoded.cache, ids, max_new_tokens=options.max_new_tokens
            )
            masks, points, scores = self._masks(encoded, answers, options)
        results = []
        first = 0
        for query, answer, wanted in zip(queries, answers, asked, strict=True):
            own = slice(first, first + answer.ids.count(self.model.config.seg_token_id))
            first = own.stop
            found = own.stop > own.start
            results.append(
                Segmentation(
                    query=writable(query),
                    answer=self.processor.decode(answer.ids),
                    present=True if found else False if wanted else None,
                    image_size=encoded.frame.hw,
                    masks=masks[own],
                    points_xy=tuple(xy for xy, _ in points[own]),
                    point_labels=tuple(labels for _, labels in points[own]),
                    scores=scores[own],
                    alignment=settings.alignment,
                    box=encoded.frame.lmm_box if settings.alignment == "exact" else None,
                    finished=answer.finished,
                    image=encoded.image,
                )
            )
        return results

    def _masks(
        self, encoded: _Encoded, answers: Sequence[Answer], options: _Options
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Masks (S, H, W), points and labels, and scores (S, N) of all [SEG] of all answers, in reading order."""
        frame = encoded.frame
        seg = self.model.config.seg_token_id
        h_seg = torch.cat([a.states[[i for i, token in enumerate(a.ids) if token == seg]] for a in answers])
        scores = self.model.similarity(h_seg, encoded.h_img)
        if not len(h_seg):
            return np.zeros((0, *frame.hw), bool), [], scores.cpu().numpy()
        found, low_res = self.model.decode_masks(
            h_seg,
            scores,
            torch.zeros(len(h_seg), dtype=torch.long, device=h_seg.device),
            encoded.mask_embeddings,
            [frame],
            points=options.points,
            prompt=options.prompt,
        )
        # One by one: logits at the image's size are 32 times as large as the masks that stay.
        masks = np.stack([(frame.masks_to_image(one[None])[0] > 0).cpu().numpy() for one in low_res])
        points = [(p.xy.float().cpu().numpy(), p.labels.cpu().numpy()) for p in found]
        return masks, points, scores.cpu().numpy()


class Chat:
    """A conversation about one image; `Segmenter.chat` starts it.

    turns: what was asked and answered so far.
    """

    def __init__(self, segmenter: Segmenter, image: Image.Image) -> None:
        self._segmenter = segmenter
        self._image = image
        self.turns: list[Turn] = []

    def ask(
        self,
        text: str,
        *,
        asks: bool | None = None,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
        max_new_tokens: int = 128,
    ) -> Segmentation:
        """Say something, as it stands, and get the answer with the masks of its [SEG].

        Without [SEG] `present` is None, unless the text asks for a mask in so many words (`requests_mask`) or
        `asks` says so: then it is False. A question that fails leaves the conversation as it was.

        Args:
            text: what to say.
            asks: whether it asks for an object.
            prompt: as in `Segmenter.segment`.
            points: as in `Segmenter.segment`.
            max_new_tokens: where the answer is cut off.

        Raises:
            QueryError: the text is empty, or the conversation has outgrown the model's context.
            ReadsegError: an option has no such value, or does not fit the model.
        """
        _check_query(text)
        wanted = requests_mask(text) if asks is None else asks
        options = _Options(prompt, points, max_new_tokens)
        encoded = self._segmenter._encode(self._image)
        turns = [*self.turns, Turn(text)]
        result = self._segmenter._answer(encoded, [text], [turns], [wanted], options)[0]
        self.turns.append(Turn(text, result.answer))
        return result


def _check_query(query: Any) -> None:
    if not isinstance(query, str):
        raise QueryError(f"a query is text, got {type(query).__name__}: say what to look for")
    if not query.strip():
        raise QueryError("the query is empty: say what to look for")


def _device_and_dtype(
    device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    gpu = torch.cuda.is_available()
    try:
        where = torch.device(device or ("cuda" if gpu else "cpu"))
        torch.empty(0, device=where).tolist()  # "meta" makes tensors, but without values
    except (RuntimeError, AssertionError) as error:
        raise ReadsegError(f'device {str(device)!r} cannot be used here: try "cpu" or, with a GPU, "cuda"') from error
    if dtype is None:
        return where, torch.bfloat16 if where.type == "cuda" else torch.float32
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if precision not in (torch.float32, torch.bfloat16, torch.float16):
        raise ReadsegError(f"dtype must be float32, bfloat16 or float16; got {dtype!r}")
    return where, precision


@contextmanager
def _quiet_libraries(*, bar: bool) -> Iterator[None]:
    """What libraries log while they load would stand before the one line that says what is wrong.

    Their progress bar is for people who wait: not for the embedded model, nor where nobody watches.
    """
    loggers = [getLogger("transformers"), getLogger("huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bar = logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(CRITICAL)
    if not bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bar:
            logging.enable_progress_bar()


def _source(name: str | Path | None) -> str:
    """A folder with a model in it, or a hub id; transformers' own words for what is wrong are many."""
    if name is None:
        if not (EMBEDDED / "config.json").is_file():
            raise ReadsegError(
                f"the embedded model is missing ({EMBEDDED}): reinstall readseg, or name a model's folder or hub id"
            )
        return str(EMBEDDED)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ReadsegError(f"{path} holds no model: expected config.json, weights and tokenizer in it")
        return str(path)
    if path.exists():
        raise ReadsegError(f"{path} is a file: name the folder of a model")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise ReadsegError(f"there is no model {str(name)!r}: expected a folder or a hub id such as owner/model")
    return str(name)
