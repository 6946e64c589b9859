"""DtoC in a window beside the formula over the whole image, timed in one run.

    python benchmarks/dtoc.py [--height 1080 --width 1920 --points 60]

The plain formula builds the full map and, for each point, weighs every pixel of the image. Both start from
the same scores and the same discrete points, and must end at the same positions. Exits with 1 if the window
is less than 100 times faster, or slower on the largest image than 1.5 times on the smallest.
"""

from __future__ import annotations

import argparse
import sys

import torch
from timing import seconds
from torch import Tensor, nn

from readseg.core.sasp import PointConfig, PointPrompts, discrete_to_continuous, normalise, select_points

SIDE = 24
LEAST_SPEEDUP = 100
MOST_GROWTH = 1.5


def plain_formula(points_xy: Tensor, scores: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """P' = sum_q w(q) q / sum_q w(q), w = exp(-|q - p|^2) softmax(g), over all pixels q. (P, 2)."""
    height, width = image_hw
    short = min(height, width)
    grid = normalise(scores.view(1, 1, SIDE, SIDE))[0]
    square = nn.functional.interpolate(grid, (336, 336), mode="bilinear", align_corners=False)
    pad_y, pad_x = ((int(length * (336 / short)) - 336) // 2 for length in image_hw)
    padded = nn.functional.pad(square, (pad_x, pad_x, pad_y, pad_y))
    full = nn.functional.interpolate(padded, image_hw, mode="bilinear", align_corners=False)[0, 0]
    probability = full.flatten().softmax(0).view(height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    moved = []
    for point_x, point_y in points_xy:
        weight = torch.exp(-((x - point_x) ** 2 + (y - point_y) ** 2)) * probability
        moved.append(torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum())
    return torch.stack(moved)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    coarse = torch.randn(1, 1, SIDE // 3, SIDE // 3)
    scores = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False).flatten(1)

    config = PointConfig(num_points=options.points, downsample=1, alignment="reference")

    def select(image_hw: tuple[int, int]) -> PointPrompts:
        return select_points(scores, image_hw, config)

    def window(points: PointPrompts, image_hw: tuple[int, int]) -> Tensor:
        return discrete_to_continuous(points, scores, image_hw, config)

    asked = (options.height, options.width)
    sizes = [tuple(max(1, round(side * factor)) for side in asked) for factor in (0.25, 0.5, 1, 2, 4)]
    print(f"DtoC of {options.points} points, {SIDE} x {SIDE} tokens, {torch.get_num_threads()} thread(s)")
    print(f"{'image':>12}  {'window':>10}  {'full formula':>12}  {'ratio':>7}  {'largest difference':>18}")
    window_times, speedup = [], 0.0
    for image_hw in sizes:
        points = select(image_hw)
        fast = seconds(lambda p=points, hw=image_hw: window(p, hw), repeats=50)
        window_times.append(fast)
        row = f"{image_hw[0]:>5} x {image_hw[1]:<4}  {fast * 1e3:>7.2f} ms"
        if image_hw[0] * image_hw[1] <= asked[0] * asked[1]:
            slow = seconds(lambda p=points, hw=image_hw: plain_formula(p.xy[0], scores, hw), repeats=3)
            apart = (window(points, image_hw)[0] - plain_formula(points.xy[0], scores, image_hw)).abs().max()
            row += f"  {slow * 1e3:>9.1f} ms  {slow / fast:>6.0f}x  {apart.item():>15.1e} px"
            speedup = slow / fast if image_hw == asked else speedup
        print(row)
    growth = window_times[-1] / window_times[0]
    print(f"at {asked[0]} x {asked[1]} the window is {speedup:.0f} times faster (at least {LEAST_SPEEDUP} wanted);")
    print(f"on {(sizes[-1][0] / sizes[0][0]) ** 2:.0f} times the pixels its time grows {growth:.2f}-fold.")
    return 0 if speedup >= LEAST_SPEEDUP and growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
