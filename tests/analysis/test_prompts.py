"""The original SAM beside a model: whose weights it has, what it shares, and what is refused."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamModel

from readseg.analysis.prompts import ground_truth_points, load_original_sam, true_coverage
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.checkpoints.checkpoint import EMBEDDED
from readseg.checkpoints.files import read_weights
from readseg.core.frames import ImageFrame
from readseg.core.sasp import PointConfig
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.model.mask_prompts import decode_prompts, embed_prompts
from released import sam_state, stock_sam_name, write_released, write_sam, write_state
from small import small_model, small_processor

TOKEN = "mask_decoder.iou_token.weight"


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """READ with a decoder of its own."""

    def trained(state: dict[str, Tensor]) -> None:
        state[f"model.visual_model.{TOKEN}"] += 1

    folder = tmp_path_factory.mktemp("read")
    write_released(folder, "read", change=trained)
    return Segmenter.from_pretrained(folder, device="cpu")


@cache
def small() -> Segmenter:
    return Segmenter(small_model(), small_processor())


def write_decoder(place: Path, segmenter: Segmenter) -> dict[str, Tensor]:
    """Another decoder for a segmenter's SAM, as a run of training leaves it beside its model."""
    state = segmenter.model.sam.mask_decoder.state_dict()
    other = {f"mask_decoder.{name}": (weight + 1).bfloat16() for name, weight in state.items()}
    save_file(other, place)
    return other


def assert_weights(sam: SamModel | None, expected: dict[str, Tensor]) -> None:
    assert sam is not None
    for name, weight in expected.items():
        assert torch.equal(sam.state_dict()[name], weight.float()), name


def test_the_embedded_model_has_one_beside_it() -> None:
    segmenter = Segmenter.from_pretrained(device="cpu")
    plain, own = load_original_sam(segmenter), segmenter.model.sam
    assert plain is not None and not plain.training
    assert_weights(plain, read_weights(EMBEDDED / ORIGINAL_SAM_DECODER))
    moved = {
        n for n, w in own.mask_decoder.state_dict().items() if not torch.equal(w, plain.mask_decoder.get_parameter(n))
    }
    assert len(moved) > 100, "training moves nearly every weight of the decoder"
    for shared in ("vision_encoder", "prompt_encoder", "shared_image_embedding"):
        assert getattr(plain, shared) is getattr(own, shared)


def test_a_run_s_folder_and_its_file(tmp_path: Path) -> None:
    segmenter = small()
    assert load_original_sam(segmenter) is None, "a model in memory has no folder"
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert load_original_sam(loaded) is None, "its folder has no such file"
    other = write_decoder(tmp_path / ORIGINAL_SAM_DECODER, loaded)
    assert_weights(load_original_sam(loaded), other)
    assert_weights(load_original_sam(segmenter, tmp_path), other)
    assert_weights(load_original_sam(segmenter, tmp_path / ORIGINAL_SAM_DECODER), other)


@torch.inference_mode()
def test_it_computes_as_a_sam_of_its_own(read: Segmenter, tmp_path: Path) -> None:
    write_sam(tmp_path / "sam.pth")
    plain = load_original_sam(read, tmp_path / "sam.pth")
    assert plain is not None
    alone = SamModel(read.model.config.mask_config).eval()
    alone.load_state_dict({stock_sam_name(n): w.float() for n, w in sam_state().items()}, strict=False)
    alone.shared_image_embedding.positional_embedding.copy_(plain.shared_image_embedding.positional_embedding)
    image = torch.randn(1, 32, 4, 4)
    found = []
    for sam in (plain, alone, read.model.sam):
        points = embed_prompts(sam, torch.tensor([[[10.0, 20.0], [40.0, 30.0]]]), torch.tensor([[1, 0]]))
        found.append(decode_prompts(sam, image, points)[0])
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 0.01


def test_stock_and_original_layout(read: Segmenter, tmp_path: Path) -> None:
    write_sam(tmp_path / "sam.pth")
    plain = load_original_sam(read, tmp_path / "sam.pth")
    assert plain is not None
    plain.save_pretrained(tmp_path / "stock")
    decoder = {stock_sam_name(name): w for name, w in sam_state().items() if name.startswith("mask_decoder.")}
    assert_weights(plain, decoder)
    assert_weights(load_original_sam(read, tmp_path / "stock"), decoder)
    assert read.model.sam.mask_decoder.iou_token.weight.sub(plain.mask_decoder.iou_token.weight).abs().min() > 0.9


def test_another_sam_is_an_error(read: Segmenter, tmp_path: Path) -> None:
    """SAMs of all sizes have decoders of one shape: weights of another one would give masks, and wrong ones."""
    other = sam_state()
    other["prompt_encoder.point_embeddings.1.weight"] = other["prompt_encoder.point_embeddings.1.weight"] + 1
    torch.save(other, tmp_path / "other.pth")
    message = r"other\.pth is another SAM .*prompt_encoder\.point_embed\.1\.weight differs"
    with pytest.raises(ReadsegError, match=message):
        load_original_sam(read, tmp_path / "other.pth")
    write_decoder(tmp_path / "small.safetensors", small())
    with pytest.raises(
        ReadsegError, match=r"small\.safetensors: this is no mask decoder of the model's SAM; of a wrong"
    ):
        load_original_sam(read, tmp_path / "small.safetensors")
    decoder = read_weights(tmp_path / "small.safetensors")
    del decoder[TOKEN]
    save_file(decoder, tmp_path / "less.safetensors")
    with pytest.raises(ReadsegError, match=r"missing: iou_token\.weight"):
        load_original_sam(small(), tmp_path / "less.safetensors")


def test_what_is_no_sam_is_an_error(read: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=re.escape(str(tmp_path / "nowhere"))):
        load_original_sam(read, tmp_path / "nowhere")
    write_state(tmp_path / "words", {"a.weight": torch.zeros(2)})
    with pytest.raises(ReadsegError, match="no SAM"):
        load_original_sam(read, tmp_path / "words" / "pytorch_model.bin")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ReadsegError, match=r"text\.pth"):
        load_original_sam(read, tmp_path / "text.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadsegError, match="empty"):
        load_original_sam(read, tmp_path / "empty")


# -- points of the truth -----------------------------------------------------------------------------------------------

SETTINGS = PointConfig(num_points=30, downsample=1, alignment="exact")


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random rectangles of 1, and one of 255."""
    rng = np.random.default_rng(seed)
    target = np.zeros((height, width), np.uint8)
    for value in (1, 1, 1, 255):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, size + 1, 2)) for size in (height, width))
        target[top:bottom, left:right] = value
    return target


@pytest.mark.parametrize(("height", "width", "side"), [(40, 60, 4), (37, 53, 5), (9, 70, 14), (5, 3, 8)])
def test_of_a_grid_over_the_whole_image(height: int, width: int, side: int) -> None:
    """Each pixel becomes side x side fine ones: then every cell holds a whole number of them."""
    target = blobs(height, width)
    fine = np.kron(target == 1, np.ones((side, side))).reshape(side, height, side, width)
    found = true_coverage(target, side, (0, 0, width, height))
    np.testing.assert_allclose(found, fine.mean(axis=(1, 3)), atol=1e-6)
    if min(height, width) >= side:  # what the stages are trained with, and the map loss
        area = cv2.resize((target == 1).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(found, area, atol=1e-5)


@pytest.mark.parametrize("box", [(10, 0, 50, 40), (0, -10, 60, 50), (-30, -30, 90, 70)])
def test_of_a_grid_over_a_part_or_beyond(box: tuple[int, int, int, int]) -> None:
    """A centre crop, a letterbox, and more: pixels of each cell one by one, those outside of the image in none."""
    target = blobs(40, 60, 1)
    found = true_coverage(target, 4, box)
    x_edges, y_edges = np.linspace(box[0], box[2], 5), np.linspace(box[1], box[3], 5)
    y, x = np.mgrid[:160, :240] / 4 + 0.125  # centres of quarter pixels: no edge cuts one
    fine = np.kron(target == 1, np.ones((4, 4), bool))
    for row, (top, bottom) in enumerate(pairwise(y_edges)):
        for column, (left, right) in enumerate(pairwise(x_edges)):
            inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
            expected = fine[inside].mean() if inside.any() else 0
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_cells_that_are_covered_alike_are_equal() -> None:
    found = true_coverage(np.ones((97, 331), np.uint8), 14, (0, 0, 331, 97))
    assert found.dtype == np.float32 and (found == 1).all()


FRAME = ImageFrame(40, 60, 32, 32, "stretch")


def test_the_best_covered_cell_is_positive_however_little_of_it_is() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[22, 31] = 1  # one of the 150 pixels of the cell in row 2, column 2
    points = ground_truth_points(target, FRAME, 4, SETTINGS)
    assert points.xy[0].tolist() == [37, 25] and points.labels.tolist() == [1] + [0] * 15
    middles = [[column * 15 + 7, row * 10 + 5] for row in range(4) for column in range(4) if (row, column) != (2, 2)]
    assert points.xy[1:].tolist() == middles, "equal cells in raster order"


def test_between_the_thresholds_is_neither() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:10, :15] = target[:5, 15:30] = 1  # all of one cell, half of the next
    points = ground_truth_points(target, FRAME, 4, SETTINGS)
    assert points.labels.tolist() == [1] + [0] * 14 + [-1]
    assert points.xy[[0, -1]].tolist() == [[7, 5], [22, 5]]


def test_settings_of_points_are_the_model_s() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:20, :30] = 1
    settings = PointConfig(num_points=3, downsample=2, alignment="exact", dtoc=True)
    points = ground_truth_points(target, FRAME, 4, settings)
    assert points.xy.tolist() == [[15, 10], [45, 10], [15, 30]] and points.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("value", [0, 1, 255])
def test_nothing_and_everything_give_no_points(value: int) -> None:
    target = np.full((40, 60), value, np.uint8)
    assert len(ground_truth_points(target, FRAME, 4, SETTINGS).xy) == 0


def test_a_target_outside_of_what_the_model_sees_gives_none() -> None:
    target = np.zeros((40, 60), np.uint8)
    target[:, :8] = 1  # the centre crop begins at 10
    assert len(ground_truth_points(target, ImageFrame(40, 60, 32, 32, "crop"), 4, SETTINGS).xy) == 0
    assert len(ground_truth_points(target, ImageFrame(40, 60, 32, 32, "letterbox"), 4, SETTINGS).xy) > 0
