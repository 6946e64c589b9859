"""What a user imports: `Segmenter` answers questions about images, in pixels of the image as `load_image` returns it.

What does not depend on the question is computed once for an image and kept for the next one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image

from readseg.checkpoints.load import load_model
from readseg.core.images import load_image
from readseg.core.sasp import PointConfig
from readseg.core.token_grid import check_choice
from readseg.core.types import Turn
from readseg.errors import ReadsegError
from readseg.inference.queries import EncodedImage, ModelAnswer, QueryError, check_query, question_for, requests_mask
from readseg.inference.result import Segmentation
from readseg.model.config import Prompt
from readseg.model.families import REJ, SEG
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import names_answer, names_question, writable

DECODE_BATCH = 16  # questions decoded as one batch: bounds the memory of keys and values
HIDDEN_AREA_WARNING = 0.2  # share of the image's area that is hidden from the language model


class AnswerOptions(TypedDict, total=False):
    """Keywords of `Segmenter.segment`: how a question is asked and answered. Its other methods take what they need."""

    # Whether a query asks for an object, so that an answer without [SEG] means that it is not there (`present` False,
    # not None). By default `asks_for_mask` decides for each query.
    asks: bool | None
    # What prompts the mask decoder: "both" points and [SEG], "seg" or "points"; default: the model's.
    prompt: Prompt | None
    # How points are chosen; default: the model's.
    points: PointConfig | None
    # Where an answer is cut off; default 64 (`Chat.ask` 128, `segment_together` 256).
    max_new_tokens: int
    # Teacher forcing: True asks and answers in the words of the family's evaluation, a text gives the model this
    # answer; the masks of its [SEG] come out. By default the model answers by itself.
    force: bool | str
    # Whether a query is a whole sentence, not the name of a thing: which of the family's two questions is asked, in any
    # case. By default its form tells.
    sentence: bool | None


class LoadOptions(TypedDict, total=False):
    """Keywords of `Segmenter.from_pretrained`."""

    device: str | torch.device | None  # such as "cpu" or "cuda:0"; by default a GPU if there is one
    # Such as "float32" or "bfloat16"; by default bfloat16 on a GPU; on a CPU float32, for models of more than a billion
    # weights the stored type.
    dtype: str | torch.dtype | None
    device_map: str | Mapping[str, Any] | None  # "auto" spreads a large model over several devices, as accelerate does
    bits: int | None  # 8 or 4 loads the language model quantised (needs bitsandbytes); the mask model stays in float32
    family: str | None  # which family released weights are of, where their files do not tell
    vision_tower: str | Path | None  # folder or hub id of the CLIP tower, if not where config.json says
    system: str | None  # the system prompt of released weights, "llava_v1" (default) or "vicuna_v1"
    lora_alpha: float | None  # alpha of LoRA weights that are not merged yet


_ASKING = ("asks", "max_new_tokens", "force", "sentence")
_DECODING = ("prompt", "points")


class Segmenter:
    """Answers questions about images with words and masks.

        seg = Segmenter.from_pretrained()
        out = seg.segment("desk.png", "something that tells the time")
        out.overlay().save("overlay.png")

    Methods take keywords of `AnswerOptions`: a name that a method does not know is a TypeError, a value that makes no
    sense or does not fit the model a ReadsegError. So is a query that is empty, not text or too long (QueryError), and
    an image that cannot be used (ImageError). Images are what `load_image` takes: path, PIL image, numpy array
    (H, W, 3), bytes, binary file. A UserWarning says where the model's centre crop hides more than a fifth of one.

    Args:
        model, processor: of one checkpoint; the model is put into evaluation mode.
        cached_images: how many images' features and prefix are kept, the latest used; at least 1.
        notes: what a user should know of the model's files.
    """

    def __init__(
        self, model: ReadModel, processor: ReadProcessor, *, cached_images: int = 4, notes: Sequence[str] = ()
    ) -> None:
        if cached_images < 1:
            raise ReadsegError(f"cached_images must be at least 1; got {cached_images}")
        self.model = model.eval()
        self.processor = processor
        self.notes = tuple(notes)
        self._cached_images = cached_images
        self._encoded: dict[tuple[int, int, bytes], EncodedImage] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, **options: Unpack[LoadOptions]) -> Segmenter:
        """Load a model: the embedded one without a name, else that of a folder or a hub id "owner/model".

        The layout is this package's, or that of READ, SESAME, LISA, GSVA and GLaMM as they were released. A model that
        is not there, incomplete or damaged is a ReadsegError that names the file, the key or the option.
        """
        model, processor, notes = load_model(name, **options)
        return cls(model, processor, notes=notes)

    @overload
    def segment(self, image: Any, query: str, **options: Unpack[AnswerOptions]) -> Segmentation: ...

    @overload
    def segment(self, image: Any, query: Sequence[str], **options: Unpack[AnswerOptions]) -> list[Segmentation]: ...

    def segment(
        self, image: Any, query: str | Sequence[str], **options: Unpack[AnswerOptions]
    ) -> Segmentation | list[Segmentation]:
        """Answer one question about an image, or many; many are decoded together and give what single calls give.

        A query is the name of a thing, a description, or a question. Special tokens in it are plain text. It is asked
        in the words that the model was trained with (`prompt_format.inference_question`); what asks for a segmentation
        itself, or for words only, is asked as it stands.
        """
        self._check("segment", options, (*_ASKING, *_DECODING))
        queries = [query] if isinstance(query, str) else list(query)
        encoded = self.encode(image)
        replies = self.reply(encoded, queries, **_those(_ASKING, options))
        results: list[Segmentation] = []
        for start in range(0, len(replies), DECODE_BATCH):
            results += self.decode(encoded, replies[start : start + DECODE_BATCH], **_those(_DECODING, options))
        return results[0] if isinstance(query, str) else results

    def segment_batch(
        self, images: Sequence[Any], queries: Sequence[str] | Sequence[Sequence[str]], **options: Unpack[AnswerOptions]
    ) -> list[Any]:
        """`segment` for many images: one query, or one list of queries, for each; returns what `segment` does."""
        if isinstance(queries, str) or len(images) != len(queries):
            raise QueryError(f"give one query, or one list of queries, for each of the {len(images)} images")
        return [self.segment(image, query, **options) for image, query in zip(images, queries, strict=True)]

    def segment_together(self, image: Any, names: Sequence[str], **options: Unpack[AnswerOptions]) -> Segmentation:
        """Several objects with one question, as GSVA was trained: one answer with a [SEG] or a [REJ] for each.

        `phrases` of the result tells whose each mask is, `rejected` what is not there. With `force=True` the model is
        given the answer in which every object is there, so that `said` tells for each whether the model agrees: the
        family's evaluation. ReadsegError where the model's family was not trained so.
        """
        self._check("segment_together", options, ("max_new_tokens", "force", *_DECODING))
        if isinstance(names, str):
            raise QueryError("names must be a list of names; for one object there is segment()")
        for name in names:
            check_query(name)
        question = names_question(self.processor.config.conversation, names)
        encoded = self.encode(image)
        asked = [(", ".join(names), [Turn(question)], True)]
        replies = self._answer(encoded, asked, options, 256, names_answer(names), tuple(names))
        return self.decode(encoded, replies, **_those(_DECODING, options))[0]

    def chat(self, image: Any) -> Chat:
        """A conversation about one image, in which later questions may refer to earlier answers."""
        return Chat(self, load_image(image))

    # -- the steps of `segment` ------------------------------------------------------------------------------------

    def encode(self, image: Any) -> EncodedImage:
        """The first step of `segment`: all that does not depend on a question. Kept, and found again for a copy."""
        image = load_image(image)
        frame = self.processor.frame(image)
        if frame.hidden_fraction > HIDDEN_AREA_WARNING:
            warnings.warn(
                f"the model sees only the centre square of this {image.width} x {image.height} image; "
                f"{frame.hidden_fraction:.0%} of it is hidden: crop the image to what matters",
                UserWarning,
                stacklevel=3,
            )
        key = (*image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        encoded = self._encoded.pop(key, None)
        if encoded is None:
            processor, model = self.processor, self.model
            with torch.inference_mode():
                features = model.encode_image(processor.lmm_pixels(image)[None].to(model.device))
                prefix_ids = processor.prefix_ids()
                cache, h_img = model.prefill(prefix_ids, features)
                embeddings = model.embed_masks_image(processor.mask_pixels(image)[None].to(model.device))
            encoded = EncodedImage(image, frame, prefix_ids, cache, features[0], h_img, embeddings)
        self._encoded[key] = encoded  # the latest used comes last
        if len(self._encoded) > self._cached_images:
            del self._encoded[next(iter(self._encoded))]
        return encoded

    def reply(
        self, encoded: EncodedImage, queries: Sequence[str], **options: Unpack[AnswerOptions]
    ) -> list[ModelAnswer]:
        """The second step of `segment`: answers in words, with their states; what prompts masks plays no part yet."""
        self._check("reply", options, _ASKING)
        for query in queries:
            check_query(query)
        conversation = self.processor.config.conversation
        asks, sentence, always = options.get("asks"), options.get("sentence"), options.get("force") is True
        answers: list[ModelAnswer] = []
        for start in range(0, len(queries), DECODE_BATCH):
            asked = []
            for query in queries[start : start + DECODE_BATCH]:
                question, expects_mask = question_for(conversation, query, asks, sentence, always)
                asked.append((query, [Turn(question)], expects_mask))
            answers += self._answer(encoded, asked, options, 64, conversation.forced_answer)
        return answers

    def decode(
        self, encoded: EncodedImage, replies: Sequence[ModelAnswer], **options: Unpack[AnswerOptions]
    ) -> list[Segmentation]:
        """The last step of `segment`: points and masks of all [SEG] of some replies about the image."""
        self._check("decode", options, _DECODING)
        points, seg = options.get("points") or self.model.config.points, self.model.config.seg_token_id
        frame, first = encoded.frame, 0
        segs_of = [[i for i, token in enumerate(answer.answer.ids) if token == seg] for answer in replies]
        with torch.inference_mode():
            states = [answer.answer.states[segs] for answer, segs in zip(replies, segs_of, strict=True)]
            h_seg = torch.cat([encoded.h_img[:0], *states])
            scores = self.model.similarity(h_seg, encoded.h_img)
            images = torch.zeros(len(h_seg), dtype=torch.long, device=h_seg.device)
            chosen, low_res = self.model.decode_masks(
                h_seg, scores, images, encoded.mask_embeddings, [frame], points=points, prompt=options.get("prompt")
            )
            # One by one: logits at the image's size are 32 times as large as the masks that stay.
            masks = [(frame.masks_to_image(logits[None])[0] > 0).cpu().numpy() for logits in low_res]
        results = []
        for answer, segs in zip(replies, segs_of, strict=True):
            ids, last = answer.answer.ids, first + len(segs)
            targets = self.processor.targets(ids)
            if len(targets) == len(answer.names):
                targets = [(token, name) for (token, _), name in zip(targets, answer.names, strict=True)]
            results.append(
                Segmentation(
                    query=writable(answer.query),
                    answer=self.processor.decode(ids),
                    answer_ids=tuple(ids),
                    phrases=tuple(words for token, words in targets if token == SEG),
                    rejected=tuple(words for token, words in targets if token == REJ),
                    # For each [SEG] of a given answer, whether the model itself would have said it.
                    said=tuple(answer.answer.predicted_ids[i] == seg for i in segs) if answer.is_forced else None,
                    present=True if segs else False if answer.expects_mask else None,
                    image_size=frame.hw,
                    masks=np.array(masks[first:last], bool).reshape(-1, *frame.hw),
                    points_xy=tuple(row.xy.float().cpu().numpy() for row in chosen[first:last]),
                    point_labels=tuple(row.labels.cpu().numpy() for row in chosen[first:last]),
                    scores=scores[first:last].cpu().numpy(),
                    alignment=points.alignment,
                    box=frame.lmm_box if points.alignment == "exact" else None,
                    finished=answer.answer.finished,
                    image=encoded.image,
                )
            )
            first = last
        return results

    def _check(self, method: str, options: AnswerOptions, known: Sequence[str]) -> None:
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"{method}() has no option {', '.join(unknown)}; it has {', '.join(known)}")
        if options.get("max_new_tokens", 1) < 1:
            raise ReadsegError(f"max_new_tokens must be at least 1; got {options['max_new_tokens']}")
        force = options.get("force", False)
        if not isinstance(force, bool) and (not isinstance(force, str) or not force.strip()):
            raise ReadsegError("the answer to force is empty: expected a text, with [SEG] where a mask should be")
        try:
            if options.get("prompt") is not None:
                check_choice("prompt", options["prompt"], Prompt)
            self.model.config.check_points(options.get("points") or self.model.config.points)
        except ValueError as error:
            raise ReadsegError(str(error)) from error

    def _answer(
        self,
        encoded: EncodedImage,
        asked: Sequence[tuple[str, list[Turn], bool]],
        options: AnswerOptions,
        most_tokens: int,
        forced_answer: str = "",
        names: tuple[str, ...] = (),
    ) -> list[ModelAnswer]:
        """Answers to queries, decoded as one batch: each with its turns, of which it is the last, and `expects_mask`.

        `most_tokens` is the default of `max_new_tokens`, `forced_answer` what `force=True` means.
        """
        ids = [self.processor.query_ids(turns) for _, turns, _ in asked]
        max_new_tokens = options.get("max_new_tokens", most_tokens)
        limit = self.model.config.lmm_config.text_config.max_position_embeddings
        room = limit - len(encoded.prefix_ids) - max_new_tokens
        for (query, _, _), query_ids in zip(asked, ids, strict=True):
            if len(query_ids) > room:
                raise QueryError(
                    f"the query {query[:40]!r} is too long: {len(query_ids)} tokens, with what was said before; "
                    f"{room} fit beside image and answer into the model's {limit} positions"
                )
        force = options.get("force", False)
        behind = encoded.prefix_ids, encoded.cache, ids
        with torch.inference_mode():
            if force is False:
                generations = self.model.generate_answers(*behind, max_new_tokens=max_new_tokens)
            else:
                text = forced_answer if force is True else force
                forced = [[*turns[:-1], Turn(turns[-1].question, text)] for _, turns, _ in asked]
                generations = self.model.force_answers(*behind, [self.processor.answer_ids(turns) for turns in forced])
        return [
            ModelAnswer(query, turns[-1].question, expects_mask, generation, force is not False, names)
            for (query, turns, expects_mask), generation in zip(asked, generations, strict=True)
        ]


class Chat:
    """A conversation about one image; `Segmenter.chat` starts it. `turns`: what was asked and answered so far."""

    def __init__(self, segmenter: Segmenter, image: Image.Image) -> None:
        self._segmenter = segmenter
        self._image = image
        self.turns: list[Turn] = []

    def ask(self, text: str, **options: Unpack[AnswerOptions]) -> Segmentation:
        """Say something, as it stands, and get the answer with the masks of its [SEG].

        Without [SEG] `present` is None, unless the text asks for a mask in so many words (`requests_mask`) or
        `asks` says so: then it is False. A question that fails, such as one with which the conversation outgrows the
        model's context, leaves the conversation as it was.
        """
        segmenter = self._segmenter
        segmenter._check("ask", options, ("asks", "max_new_tokens", *_DECODING))
        check_query(text)
        asks = options.get("asks")
        expects_mask = requests_mask(text) if asks is None else asks
        encoded = segmenter.encode(self._image)
        replies = segmenter._answer(encoded, [(text, [*self.turns, Turn(text)], expects_mask)], options, 128)
        (result,) = segmenter.decode(encoded, replies, **_those(_DECODING, options))
        self.turns.append(Turn(text, result.answer, ids=result.answer_ids))
        return result


def _those(names: Sequence[str], options: AnswerOptions) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
