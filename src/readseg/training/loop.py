"""The one training loop: optimisers, schedule, progress, metrics, validation, checkpoints, resume.

A stage is an ``nn.Module`` whose ``forward(batch)`` returns named scalars, one of them ``loss``, and whose
``batch(number, rank, world)`` is a pure function of its arguments. There is no data order to remember, so a run that
was killed goes on from its last checkpoint with the very batches that it would have seen. The loop knows no model and
no data; devices and processes are accelerate's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, is_tensorboard_available, is_wandb_available
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from readseg.core.io import atomic_write, lock, remove_parts
from readseg.core.processes import processes
from readseg.errors import ReadsegError
from readseg.training.config import ScoredStageConfig, StageConfig
from readseg.training.ema import Ema

Batch = dict[str, Any]
FINISHED, BEST = "adapter", "best"
"""Folders that a stage's export goes to: at the end, and whenever a validation was the best so far."""
_AHEAD = 2  # batches made ahead by each worker
_MEAN = "running_mean.safetensors"


class Stage(Protocol):
    """What the loop asks of a stage, besides being an ``nn.Module``.

    uses_all: whether every batch gives every trained weight a gradient; several processes then need not look for those
        without one.
    """

    uses_all: bool

    def batch(self, number: int, rank: int, world: int) -> Batch:
        """A batch on one of ``world`` processes, a pure function of the arguments; ``number`` counts steps times parts.

        A step has as many parts as gradients are accumulated over.
        """

    def learning_rates(self) -> dict[str, float]:
        """Factor on the learning rate by prefix of parameter name; the longest matching prefix counts."""


@runtime_checkable
class Validated(Protocol):
    """A stage that is scored while it is trained, and whose weights are kept when the score is the best."""

    def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
        """The score that decides (higher is better), and others by name; equal in all ``world`` processes."""

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what was trained, from the module's whole state dict; called by the first process alone."""


class _Scores:
    """The validations so far, as `validation.jsonl` has them: the best score, and how many have passed since."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.best, self.since = -math.inf, 0
        self.last = int(lines[-1]["step"]) if lines else 0
        for line in lines:
            self.add(int(line["step"]), line["score"])

    def is_better(self, score: float | None) -> bool:
        return score is not None and score > self.best

    def add(self, step: int, score: float | None) -> None:
        self.last = step
        if score is not None and score > self.best:
            self.best, self.since = score, 0
        else:
            self.since += 1


@dataclass(frozen=True)
class _Run:
    """What trains: model and optimisers as accelerate prepared them, and the number of steps that are done."""

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Any]
    scores: _Scores
    ema: Ema | None
    start: int

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the running mean of its weights, where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()


def train(stage: Stage, config: StageConfig, folder: Path) -> None:
    """Train a stage in place, from its last checkpoint in ``folder`` if there is one.

    Learning rate of step t out of T with w warm-up steps: lr * min(1, (t + 1) / w), then falling from 1 to 0.02
    (cosine) or to 0 (linear). A step's gradient is the mean over its parts and over processes, clipped to norm 1. Every
    ``log_every`` steps a line goes to ``metrics.jsonl``, each value a mean over the step; every ``checkpoint_every``
    steps the state goes to ``checkpoint-<step>``, written beside its place and moved there, so that it is whole or
    absent. A `Validated` stage is scored every ``validate_every`` steps, behind the checkpoint: a line in
    ``validation.jsonl``, the best weights in ``best``; at the end the last ones are in ``adapter``. Only one run at a
    time writes in a folder.

    Args:
        stage: the module to train.
        config: steps, learning rate and intervals.
        folder: where metrics and checkpoints are kept; made if absent.

    Raises:
        ReadsegError: the loss is not finite (names the step), a tracker is not installed, another process trains in
            the folder, processes do not see the same checkpoint, or weights are sharded in a way that validation or a
            running mean cannot do with.
    """
    check_trackers(config)
    with _held(folder):
        _train(_begin(stage, config, folder), stage, config, folder)


def _train(run: _Run, stage: Stage, config: StageConfig, folder: Path) -> None:
    """The steps that are left, then what the stage leaves behind."""
    accelerator, model = run.accelerator, run.model
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    main = accelerator.is_main_process
    with (
        Progress(*columns, disable=not main, console=Console(quiet=not main)) as progress,
        _batches(stage, config, run.start, accelerator) as batches,
    ):
        task = progress.add_task(config.name, total=config.steps, completed=run.start)
        if _is_due(config, run.start) and run.scores.last < run.start:  # a kill came between the two
            _validate(run, stage, folder, run.start, progress)
        for step in range(run.start, config.steps):
            if isinstance(config, ScoredStageConfig) and 0 < config.patience <= run.scores.since:
                break
            rate = config.learning_rate * _schedule(step, config)
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                optimizer.zero_grad(set_to_none=True)
            values = [_accumulate(run, next(batches), config.name, step) for _ in range(config.accumulation)]
            if run.ema is not None:
                run.ema.update()
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                numbers = _mean_over_processes(values) | {"learning_rate": rate}
                if main:
                    _add_line(folder / "metrics.jsonl", {"step": done, **numbers})
                accelerator.log(numbers, step=done)
                progress.update(task, description=f"{config.name} loss {numbers['loss']:.3f}")
            progress.update(task, completed=done)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _save(accelerator, folder, done)
            if _is_due(config, done):
                _validate(run, stage, folder, done, progress)
    if isinstance(stage, Validated):
        with run.averaged():
            _export(accelerator, model, stage, folder / FINISHED)
    if config.trackers:
        accelerator.end_training()


def _begin(stage: Stage, config: StageConfig, folder: Path) -> _Run:
    """Everything that a run needs, as its last checkpoint left it."""
    # The library keeps the precision of the first stage for the whole process; each stage has its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    # A batch need not use every parameter: it may hold no [SEG], or no box among its prompts.
    unused = DistributedDataParallelKwargs(find_unused_parameters=not stage.uses_all)
    accelerator = Accelerator(
        cpu=processes().device.type == "cpu",
        mixed_precision="bf16" if config.use_bf16() else "no",
        gradient_accumulation_steps=config.accumulation,
        log_with=list(config.trackers) or None,
        project_dir=str(folder / "trackers"),
        kwargs_handlers=[unused],
    )
    _check_sharding(accelerator, config)
    # An accelerate config may say otherwise; the recipe's number of parts is the one that steps are counted by.
    accelerator.gradient_accumulation_steps = config.accumulation
    if accelerator.state.deepspeed_plugin is not None:  # no loader is prepared that would tell it
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = config.images_per_step
        settings["gradient_accumulation_steps"] = config.accumulation
    module = cast(nn.Module, stage).train()
    model, *optimizers = accelerator.prepare(module, *_optimizers(module, stage.learning_rates(), config))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    ema = Ema(trained, config.ema_decay) if config.ema_decay else None
    _only_trained_weights(accelerator, module, ema)
    start = _restore(accelerator, folder)
    lines: list[dict[str, Any]] = []
    if accelerator.is_main_process:
        _cut_lines(folder / "metrics.jsonl", start)
        lines = _cut_lines(folder / "validation.jsonl", start)
    lines = broadcast_object_list([lines])[0]
    if config.trackers:
        accelerator.init_trackers("readseg")
    return _Run(accelerator, model, optimizers, _Scores(lines), ema, start)


def _accumulate(run: _Run, batch: Batch, stage_name: str, step: int) -> dict[str, Tensor]:
    """One part of a step: forward and backward; the last part of it also moves the weights."""
    accelerator, model = run.accelerator, run.model
    with accelerator.accumulate(model):
        values: dict[str, Tensor] = model(_to_device(batch, accelerator.device))
        loss = values["loss"]
        if not torch.isfinite(loss):
            raise ReadsegError(f"stage {stage_name}: the loss is {float(loss.detach())} at step {step}")
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()  # does nothing before the last part
    return {name: value.detach() for name, value in values.items()}


def _mean_over_processes(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of a step's values, over its parts and over processes; what not every part has, over those that have it."""
    plain = [{name: float(value) for name, value in part.items()} for part in parts]
    everywhere: list[dict[str, float]] = gather_object(plain)
    names = dict.fromkeys(name for part in everywhere for name in part)
    found = {name: [part[name] for part in everywhere if name in part] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


def _is_due(config: StageConfig, done: int) -> bool:
    """Whether a validation belongs to this number of steps."""
    return (
        isinstance(config, ScoredStageConfig)
        and config.validate_every > 0 < done
        and (done % config.validate_every == 0)
    )


def _validate(run: _Run, stage: Stage, folder: Path, done: int, progress: Progress) -> None:
    """Score the stage as it is; the best weights so far are written before any line says so."""
    if not isinstance(stage, Validated):
        return
    accelerator, model = run.accelerator, run.model
    rank, world = accelerator.process_index, accelerator.num_processes
    with run.averaged():
        with accelerator.autocast(), _gathered(model) as alike:
            # Layers are gathered as they are needed, by all processes at once: each of them does all of the work.
            value, numbers = stage.validate(0, 1) if alike else stage.validate(rank, world)
        score = None if math.isnan(value) else value
        if better := run.scores.is_better(score):
            _export(accelerator, model, stage, folder / BEST)
    run.scores.add(done, score)
    if accelerator.is_main_process:
        _add_line(folder / "validation.jsonl", {"step": done, "score": score, **numbers})
    accelerator.log({f"validation/{name}": number for name, number in numbers.items()}, step=done)
    told = ", ".join(f"{name} {number:.3f}" for name, number in numbers.items())
    progress.console.print(f"step {done}: {told}{' (the best so far)' if better else ''}", highlight=False)


def _export(accelerator: Accelerator, model: nn.Module, stage: Validated, folder: Path) -> None:
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        stage.export(state, folder)
    accelerator.wait_for_everyone()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Within it no other run writes in the folder; what a killed one left half-written is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    if not processes().is_main_process:
        yield
        return
    with (folder / ".lock").open("a", encoding="utf-8") as stream:
        lock(stream, str(folder))
        remove_parts(folder)
        yield


@contextmanager
def _gathered(model: nn.Module) -> Iterator[bool]:
    """Within it the weights outside of a sharded model's layers are whole; whether the model is sharded."""
    if not isinstance(model, FSDPModule):
        yield False
        return
    model.unshard()
    try:
        yield True
    finally:
        model.reshard()


def _check_sharding(accelerator: Accelerator, config: StageConfig) -> None:
    """Raises ReadsegError where weights are sharded, and what the stage asks for needs them whole."""
    fsdp, deepspeed = getattr(accelerator.state, "fsdp_plugin", None), accelerator.state.deepspeed_plugin
    third = deepspeed is not None and deepspeed.zero_stage == 3
    if config.ema_decay and (fsdp is not None or third):
        raise ReadsegError("ema_decay: a running mean needs weights that are not sharded; set it to 0")
    old = fsdp is not None and fsdp.fsdp_version != 2
    if isinstance(config, ScoredStageConfig) and config.validate_every and (old or third):
        raise ReadsegError(
            "validate_every: validation while training needs FSDP version 2, or ZeRO up to stage 2; set it to 0, or "
            "change the accelerate config"
        )


def check_trackers(config: StageConfig) -> None:
    """Raises ReadsegError where a tracker is not installed."""
    there = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if missing := [name for name in config.trackers if not there[name]]:
        raise ReadsegError(f"trackers: {missing[0]} is not installed: pip install {missing[0]}, or leave it out")


def _schedule(step: int, config: StageConfig) -> float:
    """Warm-up, then a half cosine down to 0.02, or a line down to 0 behind the last step."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - share
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def _optimizers(module: nn.Module, rates: dict[str, float], config: StageConfig) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of linear layers and AdamW for embeddings, norms, convolutions, output heads."""
    matrices = {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if config.optimizer == "muon"
        and isinstance(layer, nn.Linear)
        and not any(word in name for word in ("lm_head", "heads."))
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


@contextmanager
def _batches(stage: Stage, config: StageConfig, start: int, accelerator: Accelerator) -> Iterator[Iterator[Batch]]:
    """The batches from a step on, in order, some of them made ahead by threads.

    They read and paint in libraries that let other threads run, and share the data sets' indices, which processes would
    each have to hold.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    numbers = iter(range(start * config.accumulation, config.steps * config.accumulation))
    with ThreadPoolExecutor(config.workers) as pool:

        def ahead() -> Iterator[Batch]:
            first = islice(numbers, _AHEAD * config.workers)
            waiting = deque(pool.submit(stage.batch, number, rank, world) for number in first)
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(stage.batch, number, rank, world) for number in islice(numbers, 1))
                yield batch

        try:
            yield ahead()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal() and path.name.isascii()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _only_trained_weights(accelerator: Accelerator, module: nn.Module, ema: Ema | None) -> None:
    """Checkpoints hold what is trained, buffers, and the running mean; what is frozen is where training started.

    Where weights are sharded the library saves them its own way, all of them.
    """
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for state in weights:
            for name in frozen & state.keys():
                del state[name]
        if ema is not None and accelerator.is_main_process:
            save_file(ema.state_dict(), Path(folder) / _MEAN)

    def load(models: list[nn.Module], folder: str) -> None:
        while models:
            state = torch.load(Path(folder) / "pytorch_model.bin", map_location="cpu", weights_only=True)
            missing, unexpected = models.pop().load_state_dict(state, strict=False)
            wrong = sorted({name.removeprefix("module.") for name in missing} - frozen) + unexpected
            if wrong:
                raise ReadsegError(f"{folder}: it is a checkpoint of another model: {', '.join(wrong[:5])}")
        if ema is not None:
            ema.load_state_dict(load_file(Path(folder) / _MEAN))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint; returns the number of steps done.

    Raises:
        ReadsegError: processes see different checkpoints, or its files are damaged.
    """
    found = _checkpoints(folder)
    newest = found[-1].name if found else ""
    if len(set(gather_object([newest]))) > 1:
        raise ReadsegError(f"{folder}: processes see different checkpoints; it must lie where all machines see it")
    if not found:
        return 0
    try:
        accelerator.load_state(str(found[-1]))
    except ReadsegError:
        raise
    except Exception as error:  # of torch, safetensors, pickle, zip, ...: they share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReadsegError(
            f"{found[-1]}: the checkpoint cannot be read ({reason}); delete it to begin the stage again"
        ) from error
    return int(newest.removeprefix("checkpoint-"))


def _save(accelerator: Accelerator, folder: Path, done: int) -> None:
    """Write ``checkpoint-<done>`` atomically, then drop the older ones."""
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial), safe_serialization=False)  # safetensors warns of SAM's shared buffer
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has no error of its own for a full disk
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReadsegError(f"{folder}: the checkpoint of step {done} cannot be written: {reason}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = _checkpoints(folder)
        partial.replace(folder / f"checkpoint-{done}")
        for path in older:
            if path.name != f"checkpoint-{done}":
                shutil.rmtree(path)


def _add_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _cut_lines(path: Path, start: int) -> list[dict[str, Any]]:
    """Drop the lines of steps that will be done again, and one that a kill left half-written; returns the rest."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= start:
                kept.append(record)
        except (ValueError, TypeError, KeyError):
            continue
    with atomic_write(path) as place:
        place.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return kept
