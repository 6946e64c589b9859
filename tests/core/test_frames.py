"""The frames: sizes, points, masks, and what the LMM and the mask decoder see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from readseg.core.frames import PADDING_COLOUR, ImageFrame, View
from readseg.core.sasp import PointConfig, full_map, points_from_scores

VIEWS: list[View] = ["crop", "letterbox", "stretch"]
few = settings(max_examples=50, deadline=None, derandomize=True)
side = st.integers(1, 3000)


def picture(height: int, width: int) -> Image.Image:
    """A smooth random RGB image with some noise."""
    rng = np.random.default_rng(height * 10_000 + width)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


class TestMaskFrame:
    @few
    @given(side, side, st.sampled_from([64, 160, 1024]))
    def test_size(self, height: int, width: int, mask_size: int) -> None:
        new_height, new_width = ImageFrame(height, width, 336, mask_size).mask_hw
        assert max(new_height, new_width) == mask_size
        assert abs(new_height - max(1, height * mask_size / max(height, width))) <= 0.5 + 1e-6
        assert abs(new_width - max(1, width * mask_size / max(height, width))) <= 0.5 + 1e-6

    def test_half_is_rounded_up(self) -> None:
        assert ImageFrame(5, 16, 336, mask_size=8).mask_hw == (3, 8)  # 2.5

    @few
    @given(side, side)
    def test_points_round_trip(self, height: int, width: int) -> None:
        frame = ImageFrame(height, width, 336, 1024)
        points = torch.rand(2, 3, 2, dtype=torch.float64) * torch.tensor([width, height])
        inside = frame.to_mask_frame(points)
        new_height, new_width = frame.mask_hw
        assert (inside <= torch.tensor([new_width, new_height]) + 1e-6).all()
        torch.testing.assert_close(inside * torch.tensor([width / new_width, height / new_height]), points)

    def test_points_are_float32_at_least(self) -> None:
        points, frame = torch.tensor([[641.0, 479.0]]), ImageFrame(480, 642, 336, 1024)
        assert frame.to_mask_frame(points.bfloat16()).dtype == torch.float32
        assert frame.to_mask_frame(points.double()).dtype == torch.float64

    def test_masks_are_cropped_to_the_image(self) -> None:
        frame = ImageFrame(30, 60, 336, mask_size=64)
        logits = torch.randn(3, 16, 16)
        large = nn.functional.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)
        plain = nn.functional.interpolate(large[..., :32, :], (30, 60), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(frame.masks_to_image(logits), plain)
        assert frame.masks_to_image(logits.bfloat16()).dtype == torch.float32
        assert frame.masks_to_image(logits[:0]).shape == (0, 30, 60)

    @pytest.mark.parametrize("hw", [(30, 60), (1, 400), (7, 3)])
    def test_view(self, hw: tuple[int, int]) -> None:
        frame = ImageFrame(*hw, 336, 64)
        view = frame.mask_view(picture(*hw))
        assert (view.height, view.width) == frame.mask_hw
        expected = picture(*hw).resize(frame.mask_hw[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(view), np.asarray(expected))


class TestLmmView:
    @pytest.mark.parametrize("size", [336, 224, 65])
    @pytest.mark.parametrize("hw", [(480, 640), (333, 500), (97, 131), (64, 64), (7, 9), (500, 33), (1, 16)])
    def test_crop_equals_clip(self, hw: tuple[int, int], size: int) -> None:
        image = picture(*hw)
        processor = CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            do_rescale=False,
            do_normalize=False,
        )
        theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(ImageFrame(*hw, size, 64).lmm_view(image)), theirs)

    def test_extreme_crop_is_the_same_without_the_memory(self) -> None:
        image, size = picture(10, 170), 64
        ours = np.asarray(ImageFrame(10, 170, size, 64).lmm_view(image), np.int16)
        plain = image.resize((17 * size, size), Image.Resampling.BICUBIC).crop((8 * size, 0, 9 * size, size))
        assert np.abs(ours - np.asarray(plain, np.int16)).max() <= 1

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("hw", [(1, 1), (1, 4000), (4000, 1), (30, 50)])
    def test_size(self, hw: tuple[int, int], view: View) -> None:
        assert ImageFrame(*hw, 48, 64, view).lmm_view(picture(*hw)).size == (48, 48)

    def test_letterbox_is_centred_and_padded(self) -> None:
        image = Image.new("L", (40, 20), 255)  # other modes become RGB
        pixels = np.asarray(ImageFrame(20, 40, 80, 64, "letterbox").lmm_view(image))
        assert (pixels[20:60] == 255).all()
        assert (pixels[:20] == PADDING_COLOUR).all() and (pixels[60:] == PADDING_COLOUR).all()

    def test_stretch_shows_all(self) -> None:
        image = picture(20, 40)
        pixels = np.asarray(ImageFrame(20, 40, 80, 64, "stretch").lmm_view(image))
        assert np.array_equal(pixels, np.asarray(image.resize((80, 80), Image.Resampling.BICUBIC)))


class TestLmmBox:
    def test_crop_and_stretch(self) -> None:
        assert ImageFrame(480, 641, 336, 1024).lmm_box == (80.5, 0, 560.5, 480)
        assert ImageFrame(480, 640, 336, 1024, "stretch").lmm_box == (0, 0, 640, 480)

    def test_another_view_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="view must be one of crop, letterbox, stretch; got 'wide'"):
            ImageFrame(480, 640, 336, 1024, "wide")  # type: ignore[arg-type]

    @few
    @given(side, side, st.sampled_from([224, 336]))
    def test_letterbox_covers_the_image_and_is_square(self, height: int, width: int, size: int) -> None:
        frame = ImageFrame(height, width, size, 1024, "letterbox")
        x0, y0, x1, y1 = frame.lmm_box
        assert x0 <= 1e-6 and y0 <= 1e-6 and x1 >= width - 1e-6 and y1 >= height - 1e-6
        scale_x, scale_y = size / (x1 - x0), size / (y1 - y0)
        assert scale_x * width == pytest.approx(max(1, size * width / max(height, width)), abs=0.51)
        assert scale_y * height == pytest.approx(max(1, size * height / max(height, width)), abs=0.51)

    def test_hidden_fraction(self) -> None:
        for hw, view, expected in (
            ((480, 640), "crop", 0.25),
            ((640, 480), "crop", 0.25),
            ((480, 640), "letterbox", 0),
            ((480, 640), "stretch", 0),
        ):
            assert ImageFrame(*hw, 336, 1024, view).hidden_fraction == pytest.approx(expected)  # type: ignore[arg-type]

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("hw", [(90, 160), (160, 90), (100, 100), (101, 163)])
    @pytest.mark.parametrize("place", [(0.5, 0.5), (0.3, 0.6), (0.7, 0.35)])
    def test_a_bright_cell_leads_back_to_the_image(
        self, place: tuple[float, float], hw: tuple[int, int], view: View
    ) -> None:
        """A spot is painted, the LMM's view cut into cells as tokens are: the points must lie on the spot."""
        height, width = hw
        short = min(hw)
        spot_x = int(width / 2 + (place[0] - 0.5) * short)  # inside the centre crop
        spot_y = int(height / 2 + (place[1] - 0.5) * short)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[spot_y - 4 : spot_y + 5, spot_x - 4 : spot_x + 5] = 255
        frame = ImageFrame(height, width, 96, 64, view)
        seen = np.asarray(frame.lmm_view(Image.fromarray(pixels)), np.float32)
        if view == "letterbox":
            seen[(seen == PADDING_COLOUR).all(axis=-1)] = 0
        cells = 12
        scores = torch.from_numpy(seen.mean(-1).reshape(cells, 8, cells, 8).mean((1, 3)).flatten()[None])
        points = points_from_scores(
            scores, hw, PointConfig(num_points=1, downsample=1, alignment="exact"), box=frame.lmm_box
        )
        x0, y0, x1, y1 = frame.lmm_box
        assert points.labels.tolist() == [[1]]
        assert abs(points.xy[0, 0, 0].item() - spot_x) <= (x1 - x0) / cells
        assert abs(points.xy[0, 0, 1].item() - spot_y) <= (y1 - y0) / cells
        brightest = full_map(scores, hw, box=frame.lmm_box)[0]
        weight = brightest.clamp(min=0.3) - 0.3  # its centre of mass is the spot's centre
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        assert float((weight * x).sum() / weight.sum()) == pytest.approx(spot_x, abs=0.3 * (x1 - x0) / cells)
        assert float((weight * y).sum() / weight.sum()) == pytest.approx(spot_y, abs=0.3 * (y1 - y0) / cells)


def test_declared_shapes_hold() -> None:
    check, frame = jaxtyped(typechecker=beartype), ImageFrame(20, 40, 336, 64)
    check(ImageFrame.to_mask_frame)(frame, torch.zeros(3, 5, 2))
    check(ImageFrame.masks_to_image)(frame, torch.zeros(3, 16, 16))
