"""The frames of an image and every resize and crop between them.

Image frame: pixels of the original. LMM frame: the square that the vision tower of the language model sees. Mask
frame: the square input of the mask decoder's encoder, in which the image fills the top left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from readseg.core.token_grid import Box, check_choice

View = Literal["crop", "letterbox", "stretch"]

# CLIP's mean colour: after normalisation the padding is nearly 0.
PADDING_COLOUR = (122, 116, 104)
# Beyond this ratio of sides the plain resize before a crop would fill the memory with pixels nobody sees.
EXTREME_RATIO = 16


@dataclass(frozen=True)
class ImageFrame:
    """One image's sizes in all frames.

    Attributes:
        height, width: of the image, in pixels.
        lmm_size: side of the square that the LMM sees.
        mask_size: side of the square that the mask decoder's encoder sees (1024 for SAM).
        view: how the LMM sees the image. "crop": the centre of it, shortest side to the square; "letterbox":
            the whole, longest side to the square, padded; "stretch": the whole, both sides to the square.

    >>> ImageFrame(480, 640, lmm_size=336, mask_size=1024).mask_hw
    (768, 1024)
    """

    height: int
    width: int
    lmm_size: int
    mask_size: int
    view: View = "crop"

    def __post_init__(self) -> None:
        check_choice("view", self.view, View)

    @property
    def hw(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.height, self.width

    @property
    def mask_hw(self) -> tuple[int, int]:
        """Size of the image in the mask frame: longest side to mask_size, rounded as SAM does, int(v + 0.5)."""
        return self._fitted_hw(self.mask_size)

    def _fitted_hw(self, side: int) -> tuple[int, int]:
        scale = side / max(self.hw)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    @property
    def lmm_box(self) -> Box:
        """(x0, y0, x1, y1) in image pixels: what the LMM's square covers; outside the image where padded."""
        if self.view == "stretch":
            return 0.0, 0.0, float(self.width), float(self.height)
        if self.view == "crop":
            short = min(self.hw)
            left, top = (self.width - short) / 2, (self.height - short) / 2
            return left, top, left + short, top + short
        left_px, top_px, new_width, new_height = self._letterbox
        to_x, to_y = self.width / new_width, self.height / new_height
        right_px, bottom_px = self.lmm_size - left_px, self.lmm_size - top_px
        return -left_px * to_x, -top_px * to_y, right_px * to_x, bottom_px * to_y

    @property
    def hidden_fraction(self) -> float:
        """Share of the image's area that the LMM never sees, in [0, 1)."""
        return 1 - min(self.hw) / max(self.hw) if self.view == "crop" else 0.0

    def to_mask_frame(self, points_xy: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Points from image pixels to the mask frame: x * new_W / W, y * new_H / H, in float32 at least.

        bfloat16 would move points by whole pixels.
        """
        mask_height, mask_width = self.mask_hw
        dtype = torch.promote_types(points_xy.dtype, torch.float32)
        scale = torch.tensor([mask_width / self.width, mask_height / self.height], device=points_xy.device, dtype=dtype)
        return points_xy.to(dtype) * scale

    def masks_to_image(self, logits: Float[Tensor, "S h w"]) -> Float[Tensor, "S H W"]:
        """Mask logits of the mask frame, at any resolution, to image size.

        Bilinear to mask_size x mask_size, cropped to `mask_hw`, bilinear to (H, W), in float32 at least.
        """
        if not len(logits):
            return logits.new_zeros((0, *self.hw))
        maps = logits[:, None].to(torch.promote_types(logits.dtype, torch.float32))
        maps = nn.functional.interpolate(maps, (self.mask_size, self.mask_size), mode="bilinear", align_corners=False)
        mask_height, mask_width = self.mask_hw
        maps = maps[..., :mask_height, :mask_width]
        return nn.functional.interpolate(maps, self.hw, mode="bilinear", align_corners=False)[:, 0]

    def lmm_view(self, image: Image.Image) -> Image.Image:
        """The square that the LMM sees, lmm_size x lmm_size, RGB, resized with Pillow's bicubic filter.

        "crop" gives the pixels of transformers' CLIPImageProcessor (its Pillow backend).
        """
        image = self._checked(image)
        size = self.lmm_size
        if self.view == "stretch":
            return image.resize((size, size), Image.Resampling.BICUBIC)
        if self.view == "letterbox":
            left, top, new_width, new_height = self._letterbox
            square = Image.new("RGB", (size, size), PADDING_COLOUR)
            square.paste(image.resize((new_width, new_height), Image.Resampling.BICUBIC), (left, top))
            return square
        # Shortest side to lmm_size, the other rounded down, then the centre.
        short, long = min(self.hw), max(self.hw)
        new_long = int(size * long / short)
        new_width, new_height = (size, new_long) if self.width <= self.height else (new_long, size)
        left, top = (new_width - size) // 2, (new_height - size) // 2
        if long <= EXTREME_RATIO * short:
            resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
            return resized.crop((left, top, left + size, top + size))
        # The same pixels up to rounding, without the parts that are cut away.
        to_x, to_y = self.width / new_width, self.height / new_height
        region = (left * to_x, top * to_y, (left + size) * to_x, (top + size) * to_y)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=region)

    def mask_view(self, image: Image.Image) -> Image.Image:
        """The image resized to `mask_hw` with Pillow's bilinear filter (SAM's ResizeLongestSide), not padded."""
        mask_height, mask_width = self.mask_hw
        return self._checked(image).resize((mask_width, mask_height), Image.Resampling.BILINEAR)

    @property
    def _letterbox(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the image inside the LMM's square, in its pixels."""
        height, width = self._fitted_hw(self.lmm_size)
        return (self.lmm_size - width) // 2, (self.lmm_size - height) // 2, width, height

    def _checked(self, image: Image.Image) -> Image.Image:
        assert image.size == (self.width, self.height), "a frame is made from the image's own size"
        return image.convert("RGB")
