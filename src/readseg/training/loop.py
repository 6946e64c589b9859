"""The one training loop: optimisers, schedule, progress, metrics, validation, checkpoints, resume.

A stage's ``batch(number, rank, world)`` is a pure function of its arguments. There is no data order to remember, so a
run that was killed goes on from its last checkpoint with the very batches that it would have seen. The loop knows no
model and no data; devices and processes are accelerate's.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, utils
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from readseg.checkpoints.files import one_line
from readseg.core.io import atomic_write, lock, processes, remove_parts
from readseg.errors import ReadsegError
from readseg.training.config import ScoredStageConfig, StageConfig

Batch = dict[str, Any]
FINISHED, BEST = "adapter", "best"  # a stage's export goes there: at the end, and after the best validation so far
_AHEAD = 2  # batches made ahead by each worker
_RUNNING_MEAN = "running_mean.safetensors"


class Stage(Protocol):
    """What the loop asks of an ``nn.Module``, whose ``forward(batch)`` returns named scalars, one of them ``loss``."""

    uses_all: bool  # every batch gives every trained weight a gradient: processes then need not look for others
    rate_factors: Mapping[str, float]  # on the learning rate, by prefix of parameter name; the longest one counts

    def batch(self, number: int, rank: int, world: int) -> Batch:
        """A batch on one of ``world`` processes, a pure function of the arguments; ``number`` counts parts of steps."""


@runtime_checkable
class ValidatedStage(Protocol):
    """A stage that is scored while it is trained, and whose weights are kept when the score is the best."""

    def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
        """The score that decides (higher is better), and others by name; equal in all ``world`` processes."""

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what was trained, from the module's whole state dict; called by the first process alone."""


class Ema(nn.Module):
    """A running mean of the trained weights: m <- d m + (1 - d) w after every step.

    The decay of step t is d = min(decay, (1 + t) / (10 + t)), so that the mean forgets where it began.
    """

    steps: Tensor

    # torch.optim.swa_utils.AveragedModel would copy frozen weights too, and begins with the weights after step 1.
    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.tensor(0))
        self.pairs = [(weight.detach().clone(), weight) for weight in weights]
        for number, (mean, _) in enumerate(self.pairs):
            self.register_buffer(str(number), mean)

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimiser."""
        step = int(self.steps)
        for mean, weight in self.pairs:
            mean.lerp_(weight.detach(), 1 - min(self.decay, (1 + step) / (10 + step)))
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the module has the mean instead of its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, weight in self.pairs:
            before = weight.clone()
            weight.copy_(mean)
            mean.copy_(before)


@dataclass(frozen=True)
class _Run:
    """What trains: model and optimisers as accelerate prepared them, and what was done before."""

    stage: Stage
    config: StageConfig
    folder: Path
    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Any]
    ema: Ema
    start: int
    validations: list[dict[str, Any]]


def train(stage: Stage, config: StageConfig, folder: Path) -> None:
    """Train a stage in place, from its last checkpoint in ``folder`` if there is one.

    Learning rate of step t out of T with w warm-up steps: lr * min(1, (t + 1) / w), then falling from 1 to 0.02
    (cosine) or to 0 (linear). A step's gradient is the mean over its parts and over processes, clipped to norm 1. Every
    ``log_every`` steps a line goes to ``metrics.jsonl``, each value a mean over the step. A `ValidatedStage` is scored
    every ``validate_every`` steps: a line in ``validation.jsonl``, the best weights in ``best``; at the end the last
    ones are in ``adapter``. Only one run at a time writes in a folder.
    """
    check_trackers(config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as stream:
        if processes().is_main_process:
            lock(stream, str(folder))
            remove_parts(folder)
        _train(_prepare(stage, config, folder))


def _train(run: _Run) -> None:
    """The steps that are left, then what the stage leaves behind."""
    accelerator, stage, config = run.accelerator, run.stage, run.config
    validated = stage if isinstance(stage, ValidatedStage) else None
    every, patience = (config.validate_every, config.patience) if isinstance(config, ScoredStageConfig) else (0, 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    main = accelerator.is_main_process
    with (
        Progress(*columns, disable=not main, console=Console(quiet=not main)) as progress,
        closing(_batches(run)) as batches,
    ):
        task = progress.add_task(config.name, total=config.steps, completed=run.start)
        last = run.validations[-1]["step"] if run.validations else 0
        if validated and every and run.start % every == 0 and last < run.start:  # a kill came between the two
            _validate(run, validated, run.start, progress)
        for step in range(run.start, config.steps):
            if 0 < patience <= _since_best(run.validations):
                break
            rate = config.learning_rate * _schedule(step, config)
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                optimizer.zero_grad(set_to_none=True)
            values = [_forward_backward(run, next(batches), step) for _ in range(config.accumulation)]
            run.ema.update()
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                numbers = _mean_over_processes(values) | {"learning_rate": rate}
                _log(run, "metrics.jsonl", {"step": done, **numbers})
                accelerator.log(numbers, step=done)
                progress.update(task, description=f"{config.name} loss {numbers['loss']:.3f}")
            progress.update(task, completed=done)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _save(accelerator, run.folder, done)
            if validated and every and done % every == 0:
                _validate(run, validated, done, progress)
    if validated:
        with run.ema.applied():
            _export(run, validated, FINISHED)
    if config.trackers:
        accelerator.end_training()


def _prepare(stage: Stage, config: StageConfig, folder: Path) -> _Run:
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
    model, *optimizers = accelerator.prepare(module, *_optimizers(module, stage.rate_factors, config))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    ema = Ema(trained if config.ema_decay else [], config.ema_decay)
    _save_trained_weights_only(accelerator, module, ema)
    start = _restore(accelerator, folder)
    lines: list[Any] = [None]
    if accelerator.is_main_process:
        _cut_lines(folder / "metrics.jsonl", start)
        lines = [_cut_lines(folder / "validation.jsonl", start)]
    (validations,) = utils.broadcast_object_list(lines)
    if config.trackers:
        accelerator.init_trackers("readseg")
    return _Run(stage, config, folder, accelerator, model, optimizers, ema, start, validations)


def _forward_backward(run: _Run, batch: Batch, step: int) -> dict[str, Tensor]:
    """One part of a step; the last part of it also moves the weights."""
    accelerator, model = run.accelerator, run.model
    with accelerator.accumulate(model):
        values: dict[str, Tensor] = model(utils.send_to_device(batch, accelerator.device))
        loss = values["loss"]
        if not torch.isfinite(loss):
            raise ReadsegError(f"stage {run.config.name}: the loss is {float(loss.detach())} at step {step}")
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()  # does nothing before the last part
    return {name: value.detach() for name, value in values.items()}


def _mean_over_processes(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of a step's values, over its parts and over processes; what not every part has, over those that have it."""
    gathered: list[dict[str, float]] = utils.gather_object(
        [{k: float(value) for k, value in part.items()} for part in parts]
    )
    names = dict.fromkeys(name for part in gathered for name in part)
    values = {name: [part[name] for part in gathered if name in part] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _since_best(validations: Sequence[Mapping[str, Any]]) -> int:
    """How many validations there were since the best one; a score is None where nothing was scored."""
    scores = [-math.inf, *(-math.inf if line["score"] is None else line["score"] for line in validations)]
    return len(scores) - 1 - scores.index(max(scores))


def _validate(run: _Run, stage: ValidatedStage, done: int, progress: Progress) -> None:
    """Score the stage as it is; the best weights so far are written before any line says so."""
    accelerator = run.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    with run.ema.applied():
        with accelerator.autocast(), _unsharded(run.model) as sharded:
            # Layers are gathered as they are needed, by all processes at once: each of them does all of the work.
            value, numbers = stage.validate(0, 1) if sharded else stage.validate(rank, world)
        run.validations.append({"step": done, "score": None if math.isnan(value) else value, **numbers})
        if is_best := _since_best(run.validations) == 0:
            _export(run, stage, BEST)
    _log(run, "validation.jsonl", run.validations[-1])
    accelerator.log({f"validation/{name}": number for name, number in numbers.items()}, step=done)
    text = ", ".join(f"{name} {number:.3f}" for name, number in numbers.items())
    progress.console.print(f"step {done}: {text}{' (the best so far)' if is_best else ''}", highlight=False)


def _export(run: _Run, stage: ValidatedStage, name: str) -> None:
    state = run.accelerator.get_state_dict(run.model)
    if run.accelerator.is_main_process:
        stage.export(state, run.folder / name)
    run.accelerator.wait_for_everyone()


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[bool]:
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
    zero_3 = deepspeed is not None and deepspeed.zero_stage == 3
    if config.ema_decay and (fsdp is not None or zero_3):
        raise ReadsegError("ema_decay: a running mean needs weights that are not sharded; set it to 0")
    fsdp_1 = fsdp is not None and fsdp.fsdp_version != 2
    if isinstance(config, ScoredStageConfig) and config.validate_every and (fsdp_1 or zero_3):
        needed = "validation while training needs FSDP version 2, or ZeRO up to stage 2"
        raise ReadsegError(f"validate_every: {needed}; set it to 0, or change the accelerate config")


def check_trackers(config: StageConfig) -> None:
    """Raises ReadsegError where a tracker is not installed."""
    installed = {"tensorboard": utils.is_tensorboard_available(), "wandb": utils.is_wandb_available()}
    if missing := [name for name in config.trackers if not installed[name]]:
        raise ReadsegError(f"trackers: {missing[0]} is not installed: pip install {missing[0]}, or leave it out")


def _schedule(step: int, config: StageConfig) -> float:
    """Warm-up, then a half cosine down to 0.02, or a line down to 0 behind the last step."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - share
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def _optimizers(module: nn.Module, rates: Mapping[str, float], config: StageConfig) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of linear layers and AdamW for embeddings, norms, convolutions, output heads."""
    linear = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = max((prefix for prefix in rates if name.startswith(prefix)), key=len, default=None)
            factor = 1.0 if prefix is None else rates[prefix]
            is_muon = config.optimizer == "muon" and name in linear and not re.search(r"lm_head|heads\.", name)
            groups.setdefault((is_muon, factor), {"params": [], "factor": factor})["params"].append(parameter)
    adamw, muon = ([group for (is_muon, _), group in groups.items() if is_muon == kind] for kind in (False, True))
    optimizers: list[torch.optim.Optimizer] = []
    if adamw:
        optimizers.append(torch.optim.AdamW(adamw, config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0))
    if muon:
        optimizers.append(torch.optim.Muon(muon, config.learning_rate, 0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _batches(run: _Run) -> Generator[Batch]:
    """The batches that are left, in order, some of them made ahead."""
    # By threads: libraries that read and paint let others run, and each process would need the data sets' indices.
    rank, world, config = run.accelerator.process_index, run.accelerator.num_processes, run.config
    numbers = range(run.start * config.accumulation, config.steps * config.accumulation)
    ahead = _AHEAD * config.workers
    with ThreadPoolExecutor(config.workers) as pool:
        waiting = deque(pool.submit(run.stage.batch, number, rank, world) for number in numbers[:ahead])
        try:
            for number in numbers:
                batch = waiting.popleft().result()
                if number + ahead in numbers:
                    waiting.append(pool.submit(run.stage.batch, number + ahead, rank, world))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    paths = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name))
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _save_trained_weights_only(accelerator: Accelerator, module: nn.Module, ema: Ema) -> None:
    """Checkpoints hold what is trained, buffers, and the running mean; of sharded weights the library saves all."""
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        """Leaves frozen weights out of a checkpoint, and adds the running mean."""
        for state in weights:
            for name in frozen & state.keys():
                del state[name]
        if ema.pairs and accelerator.is_main_process:
            save_file(ema.state_dict(), Path(folder) / _RUNNING_MEAN)

    def load(models: list[nn.Module], folder: str) -> None:
        """Reads what `save` left; of other weights it is an error."""
        while models:
            state = torch.load(Path(folder) / "pytorch_model.bin", map_location="cpu", weights_only=True)
            missing, unexpected = models.pop().load_state_dict(state, strict=False)
            wrong = sorted({name.removeprefix("module.") for name in missing} - frozen) + unexpected
            if wrong:
                raise ReadsegError(f"{folder}: it is a checkpoint of another model: {', '.join(wrong[:5])}")
        if ema.pairs:
            ema.load_state_dict(load_file(Path(folder) / _RUNNING_MEAN))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint; returns the number of steps done."""
    checkpoints = _checkpoints(folder)
    if len(set(utils.gather_object([path.name for path in checkpoints[-1:]] or [""]))) > 1:
        raise ReadsegError(f"{folder}: processes see different checkpoints; it must lie where all machines see it")
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    try:
        accelerator.load_state(str(newest))
    except ReadsegError:
        raise
    except Exception as error:  # of torch, safetensors, pickle, zip, ...: they share no base class
        problem = f"the checkpoint cannot be read ({one_line(error)})"
        raise ReadsegError(f"{newest}: {problem}; delete it to begin the stage again") from error
    return int(newest.name.removeprefix("checkpoint-"))


def _save(accelerator: Accelerator, folder: Path, done: int) -> None:
    """Write ``checkpoint-<done>`` atomically, then drop the older ones."""
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial), safe_serialization=False)  # safetensors warns of SAM's shared buffer
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has no error of its own for a full disk
        problem = f"the checkpoint of step {done} cannot be written: {one_line(error)}"
        raise ReadsegError(f"{folder}: {problem}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.replace(folder / f"checkpoint-{done}")
        for older in _checkpoints(folder)[:-1]:
            shutil.rmtree(older)


def _log(run: _Run, name: str, record: dict[str, Any]) -> None:
    """Adds a line to a file of the run."""
    if run.accelerator.is_main_process:
        with (run.folder / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


def _cut_lines(path: Path, start: int) -> list[dict[str, Any]]:
    """Drop the lines of steps that will be done again, and one that a kill left half-written; returns the rest."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            if record["step"] <= start:
                kept.append(record)
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return kept
