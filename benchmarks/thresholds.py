"""The threshold search of all thresholds at once beside a mask for each threshold, timed in one run.

    python benchmarks/thresholds.py [--height 480 --width 640 --seed 0]

Two loops over the 101 thresholds: the plain one counts each mask with `masks.intersection_and_union`; the spare one
does no more than it must (the target is taken apart before, nothing is checked). All three must give the same counts.
Exits with 1 if they do not, or if the search is less than 20 times faster than the plain loop.
"""

from __future__ import annotations

import argparse
import sys

import cv2
import numpy as np
from timing import seconds

from readseg.analysis.map_metrics import search_thresholds
from readseg.core.masks import IGNORED, intersection_and_union

THRESHOLDS = [k / 100 for k in range(101)]
LEAST_SPEEDUP = 20

Counts = list[tuple[int, int]]


def at_once(value_map: np.ndarray, target: np.ndarray) -> Counts:
    curve = search_thresholds(value_map, target)
    return list(zip(curve.intersections.tolist(), curve.unions.tolist(), strict=True))


def plain_loop(value_map: np.ndarray, target: np.ndarray) -> Counts:
    return [intersection_and_union(value_map >= t, target) for t in THRESHOLDS]


def spare_loop(value_map: np.ndarray, target: np.ndarray) -> Counts:
    wanted = target == 1
    others = (target != IGNORED) & ~wanted
    size = int(np.count_nonzero(wanted))
    counts = []
    for t in THRESHOLDS:
        mask = value_map >= t
        counts.append((int(np.count_nonzero(mask & wanted)), size + int(np.count_nonzero(mask & others))))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    noise = rng.random((options.height, options.width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 20)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    target = (smooth > 0.7).astype(np.uint8)
    target[rng.random(target.shape) < 0.05] = IGNORED

    print(f"101 thresholds on {options.height} x {options.width} pixels, median of 30 searches and of 5 loops")
    print(f"{'map':>22}  {'at once':>10}  {'plain loop':>11}  {'ratio':>6}  {'spare loop':>11}  {'ratio':>6}")
    least, agree = float("inf"), True
    for name, values in (("smooth", smooth), ("noise", noise), ("on thresholds", np.round(noise, 2))):
        for dtype in (np.float32, np.float64):
            value_map = values.astype(dtype)
            counts = at_once(value_map, target)
            agree = agree and counts == plain_loop(value_map, target) == spare_loop(value_map, target)
            fast = 1e3 * seconds(lambda m=value_map: at_once(m, target), repeats=30)
            plain = 1e3 * seconds(lambda m=value_map: plain_loop(m, target), repeats=5)
            spare = 1e3 * seconds(lambda m=value_map: spare_loop(m, target), repeats=5)
            least = min(least, plain / fast)
            print(
                f"{name:>13}, {dtype.__name__}  {fast:>7.2f} ms  {plain:>8.1f} ms  {plain / fast:>5.0f}x"
                f"  {spare:>8.1f} ms  {spare / fast:>5.0f}x"
            )
    print(f"counts {'agree' if agree else 'DIFFER'}; at least {least:.0f} times faster ({LEAST_SPEEDUP} wanted)")
    return 0 if agree and least >= LEAST_SPEEDUP else 1


if __name__ == "__main__":
    sys.exit(main())
