"""Weights sharded over processes (FSDP 2) train and validate as whole ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from readseg.training.loop import _unsharded
from tuned import stage

start, data, out = map(Path, sys.argv[1:])
rank, world = (0 if os.fork() else 1), 2
dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)

def built():
    validated = {"validate_on": ("refcoco/val",), "validate_every": 1, "validate_images": 1}
    made = stage(start, data, out / "cache", gradient_checkpointing=True, **validated)
    return made, [weight for weight in made.parameters() if weight.requires_grad]

whole, weights = built()
sharded, _ = built()
mesh = init_device_mesh("cpu", (world,))
for layer in sharded.model.lmm.model.language_model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
steps = [torch.optim.AdamW(weights, lr=1e-3)]
steps.append(torch.optim.AdamW([weight for weight in sharded.parameters() if weight.requires_grad], lr=1e-3))
losses = []
for number in range(3):
    for step in steps:
        step.zero_grad()
    parts = [whole(whole.batch(number * world + k, 0, 1))["loss"] / world for k in range(world)]
    sum(parts).backward()
    own = sharded(sharded.batch(number, rank, world))["loss"]
    own.backward()
    losses.append([float(sum(parts).detach()), float(own.detach()) / world])
    for step in steps:
        step.step()
with _unsharded(sharded) as alike:
    assert alike
    scores = sharded.validate(0, 1)
away = max(
    float((ours.full_tensor().detach() - theirs.detach()).abs().max())
    for ours, theirs in zip(sharded.parameters(), whole.parameters(), strict=True) if theirs.requires_grad
)
found = {"losses": losses, "scores": scores, "expected": whole.validate(0, 1), "away": away}
(out / f"rank{rank}.json").write_text(json.dumps(found))
assert rank == 1 or os.wait()[1] == 0
"""


def test_sharded_trains_as_whole(start: Path, data: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, start, data, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for (expected, one), (_, other) in zip(first["losses"], second["losses"], strict=True):
        assert one + other == pytest.approx(expected, abs=1e-5)
    assert first["scores"] == second["scores"] == first["expected"]
    assert first["away"] < 1e-5
