"""Miniatures of all the field's data sets, made from drawn scenes: the true layout on disk, true contents, exact masks.

One folder holds what the whole mixture of training and every benchmark read.
"""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from readseg.core.io import atomic_write
from readseg.errors import ReadsegError
from readseg.miniatures.pictures import draw_pictures
from readseg.miniatures.reasoning import write_llava, write_reason_seg
from readseg.miniatures.referring import write_refer_seg
from readseg.miniatures.semantic import write_ade20k, write_cocostuff, write_mapillary, write_paco, write_pascal_part


def write_miniatures(out: Path, *, seed: int = 0, images: int = 12, progress: bool = False) -> dict[str, int]:
    """Writes a miniature of each data set below `out`, or nothing. The same arguments write the same bytes.

    `out` must be new or an empty folder. All data sets show the same 8 to 200 `images`; with fewer a split would be
    empty. Returns how much of each there is: images of ade20k, cocostuff, mapillary; annotations of paco and
    pascal_part; conversations of llava_instruct; files of ReasonSeg's splits; refs of each folder of refer_seg.
    """
    assert 8 <= images <= 200
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        state = "is not empty" if out.is_dir() else "is a file"
        raise ReadsegError(f"{out} {state}; expected a new or an empty folder to write data sets to")
    pictures = list(track(draw_pictures(seed, images), "pictures", total=images, disable=not progress))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as folder:
        folder.mkdir()
        return {
            "ade20k": write_ade20k(folder, pictures),
            "cocostuff": write_cocostuff(folder, pictures),
            "mapillary": write_mapillary(folder, pictures),
            "paco": write_paco(folder, pictures),
            "pascal_part": write_pascal_part(folder, pictures),
            "llava_instruct": write_llava(folder, pictures),
            **{f"ReasonSeg/{split}": count for split, count in write_reason_seg(folder, pictures).items()},
            **write_refer_seg(folder, pictures),
        }
