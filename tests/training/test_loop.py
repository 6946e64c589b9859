"""The loop: it learns, logs, checkpoints atomically, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from readseg.errors import ReadsegError
from readseg.training.config import ScoredStageConfig, StageConfig
from readseg.training.loop import Ema, _schedule, train


class Line(nn.Module):
    """Fits y = W x through a matrix (Muon) and a bias (AdamW); one batch in ``poison`` has no finite loss."""

    uses_all = True
    rate_factors: Mapping[str, float] = {"layer.bias": 0.5}

    def __init__(self, poison: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.poison, self.pause = poison, pause

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator)
        time.sleep(self.pause)
        return {"x": x, "y": x.flip(1) * (torch.inf if step == self.poison else 1.0)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.layer(batch["x"]) - batch["y"]).square().mean()}


def options(steps: int, every: int = 4, rate: float = 0.05, **changes: object) -> StageConfig:
    settings = {
        "name": "line", "steps": steps, "images_per_step": 1, "learning_rate": rate, "warmup_steps": 2,
        "precision": "fp32", "log_every": 1, "checkpoint_every": every,
    }  # fmt: skip
    return ScoredStageConfig.model_validate(settings | changes)


class ScoredLine(Line):
    """Its scores are given beforehand; what is exported is its bias."""

    def __init__(self, scores: list[float], **settings: object) -> None:
        super().__init__(**settings)
        self.scores, self.validated = scores, []

    def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
        self.validated.append(self.layer.bias.detach().clone())
        return self.scores[len(self.validated) - 1], {"giou": 0.5}

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(state["layer.bias"], folder / "bias.pt")


def validations(folder: Path, name: str = "validation.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in validations(folder, "metrics.jsonl")]


def test_learns_and_logs_every_step(tmp_path: Path) -> None:
    train(stage := Line(), options(60, rate=0.3), tmp_path)
    assert all((value != Line().state_dict()[name]).any() for name, value in stage.state_dict().items())
    history = losses(tmp_path)
    assert [step for step, _ in history] == list(range(1, 61))
    assert history[-1][1] < 0.1 * history[0][1]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-60"]
    train(Line(), options(60, rate=0.3), tmp_path)  # what is finished is not run again
    assert losses(tmp_path) == history


KILLED = """
import os, signal, sys, time
from pathlib import Path
from training.test_loop import Line, options, train
folder = Path(sys.argv[1])
metrics = folder / "metrics.jsonl"
for stop_at in (1, 6, 11):  # before a checkpoint, at one and behind one
    child = os.fork()  # what is imported is imported once
    if not child:
        train(Line(pause=0.05), options(12), folder)
        os._exit(0)
    while not (metrics.exists() and metrics.read_bytes().count(b"\\n") >= stop_at):
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the run was over before it could be killed"
"""


def test_a_killed_run_continues_with_the_same_losses(tmp_path: Path) -> None:
    train(Line(), options(12), tmp_path / "whole")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed"], env=environment, check=True, timeout=300)
    train(Line(), options(12), tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_stages_of_other_precision_may_follow_in_one_process(tmp_path: Path) -> None:
    for name, precision in (("a", "fp32"), ("b", "bf16")):
        train(Line(), options(2).model_copy(update={"precision": precision}), tmp_path / name)
        assert len(losses(tmp_path / name)) == 2


def test_half_written_state_is_not_used(tmp_path: Path) -> None:
    train(Line(), options(4), tmp_path)
    (tmp_path / "checkpoint.partial").mkdir()
    (tmp_path / "checkpoint.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".best.1234.part").mkdir()
    (tmp_path / ".metrics.jsonl.1234.part").write_text("half")
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "lo')
    train(Line(), options(8), tmp_path)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 9))
    assert not (tmp_path / "checkpoint.partial").exists() and not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_parts_of_a_step_are_averaged(tmp_path: Path, optimizer: str) -> None:
    """Two batches a step give the step of their mean gradient, as one optimiser written out does."""
    train(stage := Line(), options(1, accumulation=2, optimizer="adamw", warmup_steps=0), tmp_path / "parts")
    own = Line()
    step = torch.optim.AdamW(own.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    step.param_groups[0]["params"], bias = [own.layer.weight], own.layer.bias
    step.add_param_group({"params": [bias], "lr": 0.025})
    sum(own(own.batch(number, 0, 1))["loss"] / 2 for number in (0, 1)).backward()
    torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
    step.step()
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(value, own.state_dict()[name], msg=name)
    (_, loss), *_ = losses(tmp_path / "parts")
    first = Line()
    assert loss == pytest.approx(sum(float(first(first.batch(n, 0, 1))["loss"].detach()) for n in (0, 1)) / 2)
    train(Line(), options(4, accumulation=3, optimizer=optimizer), tmp_path / "more")
    assert [step for step, _ in losses(tmp_path / "more")] == [1, 2, 3, 4]


def test_schedules() -> None:
    linear = options(10, warmup_steps=2, schedule="linear")
    assert [round(_schedule(step, linear), 3) for step in range(10)] == [
        0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125,
    ]  # fmt: skip
    cosine = options(10, warmup_steps=2)
    assert _schedule(2, cosine) == 1.0 and _schedule(6, cosine) == pytest.approx(0.51)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_any_number_of_workers_gives_the_same_run(tmp_path: Path, workers: int) -> None:
    train(Line(), options(9), tmp_path / "one")
    train(Line(pause=0.002), options(9, workers=workers), tmp_path / "more")
    assert losses(tmp_path / "more") == losses(tmp_path / "one")


def test_the_best_and_the_last_weights_are_kept(tmp_path: Path) -> None:
    stage = ScoredLine([0.1, 0.4, 0.3])
    train(stage, options(6, validate_every=2), tmp_path)
    assert torch.equal(torch.load(tmp_path / "best" / "bias.pt"), stage.validated[1])
    assert torch.equal(torch.load(tmp_path / "adapter" / "bias.pt"), stage.layer.bias)
    assert validations(tmp_path) == [{"step": 2 * k + 2, "score": s, "giou": 0.5} for k, s in enumerate(stage.scores)]


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    stage = ScoredLine([0.5, 0.6, 0.6, 0.2, 0.9])
    train(stage, options(20, every=2, validate_every=2, patience=2), tmp_path)
    assert len(stage.validated) == 4 and losses(tmp_path)[-1][0] == 8
    again = ScoredLine([0.9])
    train(again, options(20, every=2, validate_every=2, patience=2), tmp_path)  # it stays stopped
    assert not again.validated and torch.equal(again.layer.bias, stage.layer.bias)


def test_the_running_mean_is_the_weighted_mean_of_what_the_weights_were() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([weight], decay=0.5)
    history, shares = [1.0], [1.0]
    for step in range(12):
        with torch.no_grad():
            weight.fill_(float(step**2))
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        history.append(float(step**2))
        shares = [share * decay for share in shares] + [1 - decay]
    assert sum(shares) == pytest.approx(1.0)
    with ema.applied():
        assert weight.item() == pytest.approx(sum(a * b for a, b in zip(history, shares, strict=True)))
    assert weight.item() == 121.0
    with pytest.raises(RuntimeError, match="Missing key"):
        Ema([weight, weight], 0.9).load_state_dict(ema.state_dict())


def test_the_running_mean_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    stage = ScoredLine([0.1])
    train(stage, options(8, validate_every=8, ema_decay=0.9), tmp_path / "a")
    kept = torch.load(tmp_path / "a" / "adapter" / "bias.pt")
    assert torch.equal(kept, stage.validated[0]) and not torch.equal(kept, stage.layer.bias)
    # A run that stops in between goes on with the mean that it had: its weights alone would give another one.
    broken = ScoredLine([0.1], poison=6)
    with pytest.raises(ReadsegError, match=r"line.*the loss is inf at step 6"):
        train(broken, options(8, validate_every=8, ema_decay=0.9), tmp_path / "b")
    train(ScoredLine([0.1]), options(8, validate_every=8, ema_decay=0.9), tmp_path / "b")
    assert torch.equal(torch.load(tmp_path / "b" / "adapter" / "bias.pt"), kept)


def test_a_validation_that_a_kill_prevented_is_made_up_for(tmp_path: Path) -> None:
    class Killed(ScoredLine):
        def validate(self, rank: int, world: int) -> tuple[float, dict[str, float]]:
            if self.validated:
                raise KeyboardInterrupt
            return super().validate(rank, world)

    settings = options(12, every=4, validate_every=4)
    train(whole := ScoredLine([0.1, 0.3, 0.2]), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Killed([0.1]), settings, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint-8").is_dir()  # nothing is lost by a validation that fails
    train(later := ScoredLine([0.3, 0.2]), settings, tmp_path / "killed")
    assert torch.equal(later.validated[0], whole.validated[1])
    assert validations(tmp_path / "killed") == validations(tmp_path / "whole")


def test_a_score_of_nothing_is_never_the_best(tmp_path: Path) -> None:
    train(stage := ScoredLine([float("nan"), 0.1, float("nan")]), options(6, validate_every=2), tmp_path)
    assert [line["score"] for line in validations(tmp_path)] == [None, 0.1, None]
    assert torch.equal(torch.load(tmp_path / "best" / "bias.pt"), stage.validated[1])


def test_two_runs_do_not_write_in_one_folder(tmp_path: Path) -> None:
    train(Line(), options(2), tmp_path)
    with (tmp_path / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ReadsegError, match=f"{tmp_path}: another process is writing to it"):
            train(Line(), options(4), tmp_path)
    train(Line(), options(4), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "unlink"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    train(Line(), options(4), tmp_path)
    path = tmp_path / "checkpoint-4" / "pytorch_model.bin"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    with pytest.raises(ReadsegError, match=r"checkpoint-4: the checkpoint cannot be read .*delete it"):
        train(Line(), options(8), tmp_path)


def test_checkpoints_leave_out_what_is_frozen(tmp_path: Path) -> None:
    stage = Line()
    stage.layer.weight.requires_grad_(False)
    before = stage.layer.weight.clone()
    train(stage, options(4), tmp_path)
    state = torch.load(tmp_path / "checkpoint-4" / "pytorch_model.bin")
    assert state.keys() == {"layer.bias"}
    again = Line()
    again.layer.weight.requires_grad_(False)
    train(again, options(4), tmp_path)
    assert torch.equal(again.layer.bias, stage.layer.bias) and torch.equal(again.layer.weight, before)


def test_trackers_get_the_numbers_and_are_named_where_they_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"wandb is not installed: pip install wandb"):
        train(Line(), options(3, trackers=["wandb"]), tmp_path)
    assert not any(tmp_path.iterdir())
    train(Line(), options(3, trackers=["tensorboard"]), tmp_path)
    assert any((tmp_path / "trackers").rglob("events.out.tfevents.*"))
