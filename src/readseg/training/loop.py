"""The one training loop: optimisers, schedule, progress, metrics, checkpoints, resume. It knows no model and no data.

A stage is an ``nn.Module`` whose ``forward(batch)`` returns named scalars, one of them ``loss``, and whose
``batch(step, rank, world)`` is a pure function of its arguments. There is no data order to remember, so a run that was
killed goes on from its last checkpoint with the very batches that it would have seen.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from readseg.errors import ReadsegError
from readseg.files import whole
from readseg.processes import processes
from readseg.training.config import StageConfig

Batch = dict[str, Any]


class Stage(Protocol):
    """What the loop asks of a stage, besides being an ``nn.Module``."""

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """The batch of a step on one of ``world`` processes: a pure function of the arguments."""

    def learning_rates(self) -> dict[str, float]:
        """Factor on the learning rate by prefix of parameter name; the longest matching prefix counts."""


def train(stage: Stage, config: StageConfig, folder: Path) -> None:
    """Train a stage in place, from its last checkpoint in ``folder`` if there is one.

    Learning rate of step t out of T with w warm-up steps: lr * min(1, (t + 1) / w) * cosine from 1 to 0.02. Gradients
    are clipped to norm 1. Every ``log_every`` steps a line goes to ``metrics.jsonl``; every ``checkpoint_every`` steps
    the state goes to ``checkpoint-<step>``, written beside its place and moved there, so that it is whole or absent.

    Args:
        stage: the module to train.
        config: steps, learning rate and intervals.
        folder: where metrics and checkpoints are kept; made if absent.

    Raises:
        ReadsegError: the loss is not finite; names the step.
    """
    # The library keeps the precision of the first stage for the whole process; each stage has its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    # A batch need not use every parameter: it may hold no [SEG], or no box among its prompts.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "bf16" if config.use_bf16() else "no"
    accelerator = Accelerator(cpu=processes().device.type == "cpu", mixed_precision=precision, kwargs_handlers=[unused])
    folder.mkdir(parents=True, exist_ok=True)
    module = cast(nn.Module, stage).train()
    optimizers = _optimizers(module, stage.learning_rates(), config)
    prepared = accelerator.prepare(module, *optimizers)
    model, optimizers = prepared[0], list(prepared[1:])
    start = _restore(accelerator, folder)
    main = accelerator.is_main_process
    if main:
        _cut_metrics(folder / "metrics.jsonl", start)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not main) as progress:
        task = progress.add_task(config.name, total=config.steps, completed=start)
        batches = _prefetch(stage, range(start, config.steps), accelerator)
        for step, batch in batches:
            factor = _schedule(step, config.steps, config.warmup_steps)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * group["factor"] * factor
                optimizer.zero_grad(set_to_none=True)
            values: dict[str, Tensor] = model(_to_device(batch, accelerator.device))
            loss = values["loss"]
            if not torch.isfinite(loss):
                raise ReadsegError(f"stage {config.name}: the loss is {float(loss.detach())} at step {step}")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                numbers = {name: float(value.detach()) for name, value in values.items()}
                if main:
                    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({"step": done, **numbers}) + "\n")
                progress.update(task, description=f"{config.name} loss {numbers['loss']:.3f}")
            progress.update(task, completed=done)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _save(accelerator, folder, done)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Warm-up, then a half cosine down to 0.02."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizers(module: nn.Module, rates: dict[str, float], config: StageConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear layers, AdamW for all else (embeddings, norms, convolutions, output heads)."""
    matrices = {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not any(word in name for word in ("lm_head", "heads."))
    }
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefixes = [prefix for prefix in rates if name.startswith(prefix)]
            factor = rates[max(prefixes, key=len)] if prefixes else 1.0
            groups.setdefault((name in matrices, factor), []).append(parameter)

    def select(muon: bool) -> list[dict[str, Any]]:
        return [{"params": p, "factor": factor} for (is_muon, factor), p in groups.items() if is_muon == muon]

    optimizers: list[torch.optim.Optimizer] = []
    if adamw := select(False):
        optimizers.append(torch.optim.AdamW(adamw, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0))
    if muon := select(True):
        optimizers.append(
            torch.optim.Muon(muon, lr=config.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _prefetch(stage: Stage, steps: range, accelerator: Accelerator) -> Iterator[tuple[int, Batch]]:
    """Batches in order, two of them made ahead by one background thread."""
    rank, world = accelerator.process_index, accelerator.num_processes
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(stage.batch, step, rank, world) for step in steps[:2]]
        for step in steps:
            batch = waiting.pop(0).result()
            if step + 2 < steps.stop:
                waiting.append(pool.submit(stage.batch, step + 2, rank, world))
            yield step, batch


def _to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_device(entry, device) for entry in value]
    return value


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint; returns the number of steps done."""
    found = _checkpoints(folder)
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    return int(found[-1].name.removeprefix("checkpoint-"))


def _save(accelerator: Accelerator, folder: Path, done: int) -> None:
    """Write ``checkpoint-<done>`` atomically, then drop the older ones."""
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=False)  # safetensors warns of SAM's shared buffer
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = _checkpoints(folder)
        partial.replace(folder / f"checkpoint-{done}")
        for path in older:
            if path.name != f"checkpoint-{done}":
                shutil.rmtree(path)


def _cut_metrics(path: Path, start: int) -> None:
    """Drop the lines of steps that will be done again, and a last line that a kill left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except ValueError:
            continue
    with whole(path) as place:
        place.write_text("".join(kept), encoding="utf-8")
