"""The loop: it learns, logs, checkpoints atomically, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from readseg.errors import ReadsegError
from readseg.training.config import StageConfig
from readseg.training.loop import train


class Line(nn.Module):
    """Fits y = W x through a matrix (Muon) and a bias (AdamW); one batch in ``poison`` has no finite loss."""

    def __init__(self, poison: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.poison, self.pause = poison, pause

    def learning_rates(self) -> dict[str, float]:
        return {"layer.bias": 0.5}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator)
        time.sleep(self.pause)
        return {"x": x, "y": x.flip(1) * (torch.inf if step == self.poison else 1.0)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.layer(batch["x"]) - batch["y"]).square().mean()}


def options(steps: int, every: int = 4, rate: float = 0.05) -> StageConfig:
    return StageConfig(
        name="line", steps=steps, images_per_step=1, learning_rate=rate, warmup_steps=2, precision="fp32",
        log_every=1, checkpoint_every=every,
    )  # fmt: skip


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def test_learns_and_logs_every_step(tmp_path: Path) -> None:
    train(Line(), options(60, rate=0.3), tmp_path)
    history = losses(tmp_path)
    assert [step for step, _ in history] == list(range(1, 61))
    assert history[-1][1] < 0.1 * history[0][1]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-60"]


def test_every_parameter_moves_at_its_own_rate(tmp_path: Path) -> None:
    stage = Line()
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    train(stage, options(3), tmp_path)
    assert all((stage.state_dict()[name] != before[name]).any() for name in before)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    train(Line(), options(5), tmp_path)
    first = losses(tmp_path)
    train(Line(), options(5), tmp_path)
    assert losses(tmp_path) == first


@pytest.mark.parametrize("stop_at", [1, 4, 6, 11])
def test_a_killed_run_continues_with_the_same_losses(tmp_path: Path, stop_at: int) -> None:
    train(Line(), options(12), tmp_path / "whole")
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from test_loop import Line, options, train; train(Line(pause=0.05), options(12), Path(sys.argv[2]))"
    )
    folder = tmp_path / "killed"
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= stop_at):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    train(Line(), options(12), folder)
    assert losses(folder) == losses(tmp_path / "whole")


def test_stages_of_other_precision_may_follow_in_one_process(tmp_path: Path) -> None:
    for name, precision in (("a", "fp32"), ("b", "bf16")):
        train(Line(), options(2).model_copy(update={"precision": precision}), tmp_path / name)
        assert len(losses(tmp_path / name)) == 2


def test_half_written_state_is_not_used(tmp_path: Path) -> None:
    train(Line(), options(8), tmp_path / "whole")
    folder = tmp_path / "broken"
    train(Line(), options(4), folder)
    (folder / "checkpoint.partial").mkdir()
    (folder / "checkpoint.partial" / "model.safetensors").write_bytes(b"half")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "lo')
    train(Line(), options(8), folder)
    steps = [step for step, _ in losses(folder)]
    assert steps == list(range(1, 9))
    assert not (folder / "checkpoint.partial").exists()


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\n"
        "from test_loop import Line, options, train\n"
        "from readseg.processes import processes\n"
        "stage = Line()\n"
        f"train(stage, options(4), Path({str(tmp_path / 'run')!r}))\n"
        f"out = Path({str(tmp_path)!r}) / f'rank{{processes().process_index}}.txt'\n"
        "out.write_text(f'{processes().num_processes} {stage.layer.weight.tolist()}')\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, timeout=120)
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4]
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("2 ")


def test_an_infinite_loss_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(ReadsegError, match=r"line.*inf.*step 3"):
        train(Line(poison=3), options(6), tmp_path)
