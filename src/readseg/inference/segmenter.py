"""What a user imports: `Segmenter` answers questions about images, `Segmentation` is what it answers.

Speaks image pixels, as `images.load_image` returns them: masks (S, H, W), points (x, y), S counts the [SEG] of an
answer. Everything that does not depend on the question is computed once for an image and kept for the next one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import torch
from PIL import Image

from readseg.checkpoints.load import load_model
from readseg.core.images import load_image
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.inference.queries import QueryError, asks_for_mask, check_query, requests_mask
from readseg.inference.replies import EncodedImage, Reply, question_for
from readseg.inference.result import Segmentation
from readseg.model.config import Prompt
from readseg.model.families import REJ, SEG
from readseg.model.generation import Answer
from readseg.model.modeling import ReadModel
from readseg.model.processing import ReadProcessor
from readseg.model.prompt_format import Turn, names_answer, names_question, writable

__all__ = ["Chat", "EncodedImage", "QueryError", "Reply", "Segmentation", "Segmenter", "asks_for_mask", "requests_mask"]

_TOGETHER = 16  # questions decoded as one batch: bounds the memory of keys and values
_WORTH_A_WARNING = 0.2  # of the image's area, hidden from the language model


class Segmenter:
    """Answers questions about images with words and masks.

        seg = Segmenter.from_pretrained()
        out = seg.segment("desk.png", "something that tells the time")
        out.overlay().save("overlay.png")

    Args:
        model: put into evaluation mode.
        processor: of that model.
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
        self._encoded: OrderedDict[tuple[int, int, bytes], EncodedImage] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        bits: int | None = None,
        family: str | None = None,
        vision_tower: str | Path | None = None,
        system: str | None = None,
        lora_alpha: float | None = None,
    ) -> Segmenter:
        """Load a model: the embedded one without a name, else that of a folder or a hub id.

        Args:
            name: a folder or a hub id "owner/model", in this package's layout or as READ, SESAME, LISA, GSVA and GLaMM
                were released.
            device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
            dtype: such as "float32" or "bfloat16"; by default bfloat16 on a GPU; on a CPU float32, for models of more
                than a billion weights the stored type.
            device_map: "auto" spreads a large model over several devices, as accelerate does.
            bits: 8 or 4 loads the language model quantised (needs bitsandbytes); the mask model stays in float32.
            family: which family released weights are of, where their files do not tell.
            vision_tower: folder or hub id of the CLIP tower, if not where config.json says.
            system: the system prompt of released weights, "llava_v1" (default) or "vicuna_v1".
            lora_alpha: alpha of LoRA weights that are not merged yet.

        Raises:
            ReadsegError: there is no such model, it is of another kind, its files are incomplete or damaged, or an
                option is unknown; the message names the file, the key or the option.
        """
        model, processor, notes = load_model(
            name,
            device=device,
            dtype=dtype,
            device_map=device_map,
            bits=bits,
            family=family,
            vision_tower=vision_tower,
            system=system,
            lora_alpha=lora_alpha,
        )
        return cls(model, processor, notes=notes)

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
        force: bool | str = ...,
        sentence: bool | None = ...,
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
        force: bool | str = ...,
        sentence: bool | None = ...,
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
        force: bool | str = False,
        sentence: bool | None = None,
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
            force: teacher forcing: True asks and answers in the words of the family's evaluation, a text gives the
                model this answer; the masks of its [SEG] come out. By default the model answers by itself.
            sentence: whether a query is a whole sentence, not the name of a thing: which of the family's two questions
                is asked, in any case. By default its form tells.

        Raises:
            ImageError: the image cannot be used.
            QueryError: a query is empty, not text, or too long.
            ReadsegError: an option has no such value, or does not fit the model.

        Warns:
            UserWarning: the model's centre crop hides more than a fifth of the image.
        """
        self._check_prompt(prompt, points)
        queries = [query] if isinstance(query, str) else list(query)
        for text in queries:
            check_query(text)
        encoded = self._encode(load_image(image))
        replies = self.reply(encoded, queries, asks=asks, max_new_tokens=max_new_tokens, force=force, sentence=sentence)
        results: list[Segmentation] = []
        for start in range(0, len(replies), _TOGETHER):
            results += self.decode(encoded, replies[start : start + _TOGETHER], prompt=prompt, points=points)
        return results[0] if isinstance(query, str) else results

    def encode(self, image: Any) -> EncodedImage:
        """The first step of `segment`: all that does not depend on a question. Kept, and found again for a copy.

        Args:
            image: as in `segment`.

        Raises:
            ImageError: the image cannot be used.

        Warns:
            UserWarning: as `segment`.
        """
        return self._encode(load_image(image))

    def reply(
        self,
        encoded: EncodedImage,
        queries: Sequence[str],
        *,
        asks: bool | None = None,
        max_new_tokens: int = 64,
        force: bool | str = False,
        sentence: bool | None = None,
    ) -> list[Reply]:
        """The second step of `segment`: answers in words, with their states; what prompts masks plays no part yet.

        Args:
            encoded: of `encode`.
            queries: about that image.
            asks: as in `segment`.
            max_new_tokens: as in `segment`.
            force: as in `segment`.
            sentence: as in `segment`.

        Raises:
            QueryError: as `segment`.
            ReadsegError: an option has no such value.
        """
        conversation = self.processor.config.conversation
        given = self._given(force, conversation.forced_answer)
        for query in queries:
            check_query(query)
        worded = [
            question_for(conversation, query, asks=asks, sentence=sentence, always=force is True) for query in queries
        ]
        replies: list[Reply] = []
        for start in range(0, len(queries), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            turns = [[Turn(question)] for question, _ in worded[part]]
            wanted = [wanted for _, wanted in worded[part]]
            replies += self._replies(encoded, queries[part], turns, wanted, max_new_tokens, given)
        return replies

    def decode(
        self,
        encoded: EncodedImage,
        replies: Sequence[Reply],
        *,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
    ) -> list[Segmentation]:
        """The last step of `segment`: points and masks of all [SEG] of some replies.

        Args:
            encoded: the image that they are about.
            replies: of `reply`.
            prompt: as in `segment`.
            points: as in `segment`.

        Raises:
            ReadsegError: an option has no such value, or does not fit the model.
        """
        self._check_prompt(prompt, points)
        with torch.inference_mode():
            masks, found, scores = self._masks(encoded, [reply.answer for reply in replies], prompt, points)
        alignment = (points or self.model.config.points).alignment
        results = []
        first = 0
        for reply in replies:
            ids = reply.answer.ids
            own = slice(first, first + ids.count(self.model.config.seg_token_id))
            first = own.stop
            named = self.processor.targets(ids)
            if len(named) == len(reply.names):
                named = [(token, name) for (token, _), name in zip(named, reply.names, strict=True)]
            results.append(
                Segmentation(
                    query=writable(reply.query),
                    answer=self.processor.decode(ids),
                    answer_ids=tuple(ids),
                    phrases=tuple(words for token, words in named if token == SEG),
                    rejected=tuple(words for token, words in named if token == REJ),
                    said=self._agreed(reply.answer) if reply.given else None,
                    present=True if own.stop > own.start else False if reply.asks else None,
                    image_size=encoded.frame.hw,
                    masks=masks[own],
                    points_xy=tuple(xy for xy, _ in found[own]),
                    point_labels=tuple(labels for _, labels in found[own]),
                    scores=scores[own],
                    alignment=alignment,
                    box=encoded.frame.lmm_box if alignment == "exact" else None,
                    finished=reply.answer.finished,
                    image=encoded.image,
                )
            )
        return results

    def segment_together(
        self,
        image: Any,
        names: Sequence[str],
        *,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
        max_new_tokens: int = 256,
        force: bool | str = False,
    ) -> Segmentation:
        """Several objects with one question, as GSVA was trained: one answer with a [SEG] or a [REJ] for each.

        Args:
            image: as in `segment`.
            names: of the objects.
            prompt: as in `segment`.
            points: as in `segment`.
            max_new_tokens: where the answer is cut off.
            force: as in `segment`; True gives the answer in which every object is there, so that `said` tells for
                each whether the model agrees: the family's evaluation.

        Returns:
            One result: `phrases` tells whose each mask is, `rejected` what is not there.

        Raises:
            ReadsegError: as in `segment`; or the model's family was not trained so.
        """
        if isinstance(names, str):
            raise QueryError("names must be a list of names; for one object there is segment()")
        for name in names:
            check_query(name)
        question = names_question(self.processor.config.conversation, names)
        given = self._given(force, names_answer(names))
        self._check_prompt(prompt, points)
        encoded = self._encode(load_image(image))
        replies = self._replies(
            encoded, [", ".join(names)], [[Turn(question)]], [True], max_new_tokens, given, tuple(names)
        )
        return self.decode(encoded, replies, prompt=prompt, points=points)[0]

    @staticmethod
    def _given(force: bool | str, answer: str) -> str | None:
        """The answer to give to the model; None where it answers by itself."""
        if isinstance(force, bool):
            return answer if force else None
        if not isinstance(force, str) or not force.strip():
            raise ReadsegError("the answer to force is empty: expected a text, with [SEG] where a mask should be")
        return force

    def segment_batch(
        self,
        images: Sequence[Any],
        queries: Sequence[str] | Sequence[Sequence[str]],
        *,
        asks: bool | None = None,
        prompt: Prompt | None = None,
        points: PointConfig | None = None,
        max_new_tokens: int = 64,
        force: bool | str = False,
        sentence: bool | None = None,
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
            self.segment(
                image,
                query,
                asks=asks,
                prompt=prompt,
                points=points,
                max_new_tokens=max_new_tokens,
                force=force,
                sentence=sentence,
            )
            for image, query in zip(images, queries, strict=True)
        ]

    def chat(self, image: Any) -> Chat:
        """A conversation about one image, in which later questions may refer to earlier answers.

        Raises:
            ImageError: the image cannot be used.
        """
        return Chat(self, load_image(image))

    def _encode(self, image: Image.Image) -> EncodedImage:
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
        self._encoded[key] = EncodedImage(image, frame, prefix_ids, cache, features[0], h_img, embeddings)
        while len(self._encoded) > self._cached_images:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _check_prompt(self, prompt: Prompt | None, points: PointConfig | None) -> None:
        if prompt is not None and prompt not in get_args(Prompt):
            raise ReadsegError(f"prompt must be one of {', '.join(get_args(Prompt))}; got {prompt!r}")
        try:
            self.model.config.check_points(points or self.model.config.points)
        except ValueError as error:
            raise ReadsegError(str(error)) from error

    def _replies(
        self,
        encoded: EncodedImage,
        queries: Sequence[str],
        conversations: Sequence[Sequence[Turn]],
        asked: Sequence[bool],
        max_new_tokens: int,
        given: str | None = None,
        names: tuple[str, ...] = (),
    ) -> list[Reply]:
        """Answers to conversations that end in a question, decoded as one batch; `given` is the answer to all."""
        if max_new_tokens < 1:
            raise ReadsegError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
        ids = [self.processor.query_ids(turns) for turns in conversations]
        limit = self.model.config.lmm_config.text_config.max_position_embeddings
        room = limit - len(encoded.prefix_ids) - max_new_tokens
        for query, query_ids in zip(queries, ids, strict=True):
            if len(query_ids) > room:
                raise QueryError(
                    f"the query {query[:40]!r} is too long: {len(query_ids)} tokens, with what was said before; "
                    f"{room} fit beside image and answer into the model's {limit} positions"
                )
        with torch.inference_mode():
            answers = self._said(encoded, conversations, ids, max_new_tokens, given)
        return [
            Reply(query, turns[-1].question, wanted, answer, given is not None, names)
            for query, turns, wanted, answer in zip(queries, conversations, asked, answers, strict=True)
        ]

    def _agreed(self, answer: Answer) -> tuple[bool, ...]:
        """For each [SEG] of a given answer, whether the model itself would have said it."""
        seg = self.model.config.seg_token_id
        pairs = zip(answer.ids, answer.said, strict=True)
        return tuple(said == seg for given, said in pairs if given == seg)

    def _said(
        self,
        encoded: EncodedImage,
        conversations: Sequence[Sequence[Turn]],
        ids: Sequence[Sequence[int]],
        max_new_tokens: int,
        given: str | None,
    ) -> list[Answer]:
        """The answers: the model's own, or the one that it is given."""
        if given is None:
            return self.model.generate_answers(encoded.prefix_ids, encoded.cache, ids, max_new_tokens=max_new_tokens)
        answers = [self.processor.answer_ids([*turns[:-1], Turn(turns[-1].question, given)]) for turns in conversations]
        return self.model.force_answers(encoded.prefix_ids, encoded.cache, ids, answers)

    def _masks(
        self, encoded: EncodedImage, answers: Sequence[Answer], prompt: Prompt | None, points: PointConfig | None
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Masks (S, H, W), points and labels, and scores (S, N) of all [SEG] of all answers, in reading order."""
        frame = encoded.frame
        seg = self.model.config.seg_token_id
        places = [answer.states[[i for i, token in enumerate(answer.ids) if token == seg]] for answer in answers]
        h_seg = torch.cat(places) if places else encoded.h_img[:0]
        scores = self.model.similarity(h_seg, encoded.h_img)
        if not len(h_seg):
            return np.zeros((0, *frame.hw), bool), [], scores.cpu().numpy()
        found, low_res = self.model.decode_masks(
            h_seg,
            scores,
            torch.zeros(len(h_seg), dtype=torch.long, device=h_seg.device),
            encoded.mask_embeddings,
            [frame],
            points=points,
            prompt=prompt,
        )
        # One by one: logits at the image's size are 32 times as large as the masks that stay.
        masks = np.stack([(frame.masks_to_image(one[None])[0] > 0).cpu().numpy() for one in low_res])
        drawn = [(p.xy.float().cpu().numpy(), p.labels.cpu().numpy()) for p in found]
        return masks, drawn, scores.cpu().numpy()


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
        check_query(text)
        wanted = requests_mask(text) if asks is None else asks
        segmenter = self._segmenter
        segmenter._check_prompt(prompt, points)
        encoded = segmenter._encode(self._image)
        turns = [*self.turns, Turn(text)]
        replies = segmenter._replies(encoded, [text], [turns], [wanted], max_new_tokens)
        result = segmenter.decode(encoded, replies, prompt=prompt, points=points)[0]
        self.turns.append(Turn(text, result.answer, result.answer_ids))
        return result
