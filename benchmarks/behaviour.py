"""Compares what the commands write with what they wrote before a change of the code that should change nothing.

    python benchmarks/behaviour.py                   # all parts, about ten minutes on one core
    python benchmarks/behaviour.py evaluate maps     # some parts
    python benchmarks/behaviour.py --record          # takes what is written now as right

benchmarks/behaviour.json has the SHA-256 of every table, record and prediction that each part writes, without times and
paths. Another processor may round a pixel otherwise: there, record on the old commit first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

DIGESTS = Path(__file__).with_suffix(".json")
TINY = " ".join(
    f"--set {stage}.{setting}"
    for stage in ("masks", "vision", "read")
    for setting in (
        "steps=20",
        "precision=fp32",
        "log_every=1",
        *(("mask_warmup_steps=4", "images=320") * (stage == "read")),
    )
)
PARTS = {
    "evaluate": ["evaluate scenes -n 60 --variants --out {out}"],
    "maps": ["study maps scenes -n 30 --out {out}"],
    "layers": ["study layers scenes -n 30 --out {out}"],
    "necessity": ["study necessity scenes -n 30 --out {out}"],
    "knowledge": ["study knowledge scenes -n 30 --out {out}"],
    "answers": ["study answers scenes -n 30 --out {out}"],
    "image": [
        "analyse {root}/examples/reasoning.png 'the bird that can talk' --layers --out {out}"
        " --truth {root}/examples/reasoning_truth.png"
    ],
    "points": ["ablate points -n 20 --out {out}"],
    "prompt": ["ablate prompt -n 10 --out {out}"],
    "scenes": ["data scenes --out {out} -n 20"],
    "mini": ["data mini --out {out}/data", "train mini --data {out}/data --out {out}/run --set mini.log_every=1"],
    "field": ["data mini --out {out}/data", "evaluate all --data {out}/data --out {out}/eval --limit 3"],
    "tiny": [f"train tiny --out {{out}} {TINY}"],
}
"""Commands by part; {out} is an empty folder, {root} the repository."""
TEXT = {".md", ".csv", ".json", ".jsonl"}
TIMES = re.compile(r'"(seconds|time|images_per_s|[a-z_]*_per_second|[a-z_]*seconds[a-z_]*|memory[a-z_]*)": [^,}\n]+')


def written(folder: Path, root: Path) -> dict[str, str]:
    """The digest of each text below a folder, by its path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in TEXT or not path.is_file() or "checkpoint" in path.as_posix():
            continue
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        text = TIMES.sub(r'"\1": 0', text.replace(str(folder), "OUT").replace(str(root), "ROOT"))
        digest = hashlib.sha256(text.encode(errors="surrogateescape"))
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()[:16]
    return found


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="By default all.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the digests instead of comparing them.")] = False,
    keep: Annotated[Path | None, typer.Option(help="An empty folder that keeps what the commands write.")] = None,
) -> None:
    """Run commands and compare what they write."""
    root = Path(__file__).parents[1]
    known: dict[str, dict[str, str]] = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    wrong = 0
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as temporary:
            out = (keep or Path(temporary)).resolve() / part
            for command in PARTS[part]:
                words = command.format(out=out, root=root)
                done = subprocess.run(
                    f"{sys.executable} -m readseg {words}",
                    shell=True,
                    check=False,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                if done.returncode:
                    raise SystemExit(
                        f"{words} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
                    )
            digests = written(out, root)
        if record:
            known[part] = digests
            DIGESTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        before = known.get(part, {})
        differ = sorted(name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name))
        wrong += bool(differ)
        print(
            f"{part}: {len(digests)} files, {f'DIFFERENT: {chr(44).join(differ)}' if differ else 'equal'}", flush=True
        )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
