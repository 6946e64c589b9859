"""The referring model of examples/: from training to a figure by its command line, and what its parts promise."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from readseg.checkpoints.load import load_model
from readseg.core.frames import ImageFrame
from readseg.core.sasp import Points
from readseg.errors import ReadsegError
from readseg.evaluation.predictions import read_result
from readseg.model.mask_prompts import masks_from_prompts
from readseg.training.config import load_recipe
from readseg.training.stages.pretraining import initialise
from readseg.training.stages.read import sample_scene_batch
from small import small_config, small_tokenizer

FOLDER = Path(__file__).parents[2] / "examples" / "referring"
SHRUNK = [
    *("vision.steps=2", "vision.images_per_step=2"),
    *("read.steps=3", "read.images_per_step=2", "read.images=4", "read.questions_per_image=4"),
    *("read.mask_warmup_steps=1", "read.masks_per_step=2", "checkpoint_every=1"),
]
SIZES = [
    *("stem=4", "channels=16,16,16", "depths=1,1,1", "width=16", "heads=2", "inner=16"),
    *("text_layers=1", "image_layers=1", "fusion_layers=2", "mask_channels=8"),
]
TRAIN = [word for change in SHRUNK for word in ("--set", change)] + [w for size in SIZES for w in ("--size", size)]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Runs `python examples/referring WORDS` in this process; the code that it ends with."""
    monkeypatch.setattr(sys, "argv", ["referring", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER), run_name="__main__")
    return int(end.value.code or 0)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, by name; their plain names are theirs in this module's tests only."""
    names = ("model", "stages", "answering", "training", "scoring", "picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: __import__(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, ModuleType]) -> Path:
    """A run of a few steps, by the command line."""
    out = tmp_path_factory.mktemp("referring") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "train", "--out", out, *TRAIN) == 0
    return out


@pytest.fixture
def network(parts: dict[str, ModuleType]) -> Any:
    """A network of a few channels with weights that make every part matter, for images of 64 px."""
    model = parts["model"]
    sizes = model.ReferringConfig(
        vocabulary=len(small_tokenizer()),
        image_size=64,
        stem=4,
        channels=(16, 16, 16),
        depths=(1, 1, 1),
        width=16,
        heads=2,
        inner=16,
        text_layers=1,
        image_layers=1,
        fusion_layers=2,
        mask_channels=8,
    )
    config = small_config()
    torch.manual_seed(0)
    built = model.Referrer(sizes, config.mask_config, config.points)
    initialise(built)
    return built.eval()


def pack(parts: dict[str, ModuleType], rows: list[list[str]]) -> Any:
    tokenizer = small_tokenizer()
    ids = [[parts["model"].question_ids(tokenizer, question) for question in row] for row in rows]
    return parts["model"].pack_questions(ids, tokenizer.convert_tokens_to_ids("[SEG]"), 63)


def test_training_leaves_a_model_that_loads_as_it_was(trained: Path, parts: dict[str, ModuleType]) -> None:
    lines = [json.loads(line) for line in (trained / "fusion" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3 and all(math.isfinite(value) for value in lines[-1].values())
    assert {"present", "map", "sam_bce", "features_dice", "sight"} <= lines[-1].keys()
    was = load_file(trained / "fusion" / "weights.safetensors")
    for key, weight in parts["answering"].load(trained / "model").model.state_dict().items():
        torch.testing.assert_close(weight.float(), was[key].float(), rtol=0.004, atol=1e-6)  # half an ulp of bfloat16


def test_a_killed_run_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, "train", "--out", out, *TRAIN, "--only", "cnn") == 0
    assert not (out / "model").exists()
    stage = parts["stages"].FusionStage
    forward, calls = stage.forward, []

    def killed(self: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "forward", killed)
        assert run(patch, "train", "--out", out, *TRAIN) == 130
    assert (out / "fusion" / "checkpoint-2").is_dir() and not (out / "model").exists()
    assert run(monkeypatch, "train", "--out", out, *TRAIN) == 0
    once, twice = (load_file(folder / "model" / "model.safetensors") for folder in (trained, out))
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)


def test_other_settings_do_not_go_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "--out", trained, *TRAIN, "--set", "read.learning_rate=0.5") == 2
    told = capsys.readouterr().err
    assert "fusion.learning_rate was 0.0015, is 0.5" in told and told.count("\n") == 1


def test_evaluation_writes_predictions_that_the_package_scores(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    words = ("evaluate", "--model", trained / "model", "--out", out, "-n", 2)
    assert run(monkeypatch, *words) == 0
    sam, features = (read_result(out / head / "predictions.jsonl") for head in ("sam", "features"))
    assert [p.key for p in sam.outcomes] == [p.key for p in features.outcomes] and len(sam.outcomes) == 12
    presence = [json.loads(line) for line in (out / "presence.jsonl").read_text().splitlines()]
    assert [record["key"] for record in presence] == [p.key for p in sam.outcomes]
    for record, prediction in zip(presence, sam.outcomes, strict=True):
        there = record["presence"] > 0.5
        assert (prediction.claimed, len(prediction.masks)) == (there, int(there))
        assert prediction.answer == ("yes [SEG]." if there else "no.")
    assert "head features" in capsys.readouterr().out
    before = (out / "sam" / "predictions.jsonl").read_bytes()
    beside = out / "sam" / "predictions.jsonl"
    assert run(monkeypatch, *words, "--head", "sam", "--beside", beside) == 0
    table = capsys.readouterr().out
    assert (out / "sam" / "predictions.jsonl").read_bytes() == before
    row = next(line for line in table.splitlines() if line.startswith("| new scenes"))
    assert row.split("|")[3] == row.split("|")[4]  # the same predictions beside themselves


def test_figure_of_two_questions(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "in.png")
    words = ("segment", tmp_path / "in.png", "the red cow", "the saw", "--model", trained / "model")
    assert run(monkeypatch, *words, "--out", tmp_path / "out.png") == 0
    assert Image.open(tmp_path / "out.png").width == 900
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_lessons_are_those_of_the_embedded_model_without_what_has_no_mask(
    trained: Path, tmp_path: Path, parts: dict[str, ModuleType]
) -> None:
    recipe = load_recipe("tiny", [*SHRUNK, "read.kinds={several: 1.0, count: 1.0}", "read.plain=0.5"])
    options = recipe.stages[2]
    embedded, processor, _ = load_model(dtype="float32", device="cpu")
    sizes = parts["training"]._sizes(len(processor.tokenizer), 224, SIZES)
    cnn = load_file(trained / "cnn" / "weights.safetensors")
    stage = parts["stages"].FusionStage(processor, sizes, options, 1, embedded.sam.state_dict(), cnn, tmp_path)
    batch = stage.batch(1, 0, 1)
    turns = [turn for sample in sample_scene_batch(options, 1, 1).samples for turn in sample.turns]
    asked = [turn for turn in turns if turn.present is not None]
    assert 0 < len(asked) < len(turns) and any(len(turn.masks) == 2 for turn in asked)
    assert batch["present"].tolist() == [float(turn.present) for turn in asked]
    there = [turn for turn in asked if turn.present]
    for mask, turn in zip(batch["masks"], there, strict=True):
        assert np.array_equal(mask.numpy(), np.maximum.reduce(turn.masks))
    assert torch.allclose(
        batch["fine"].float().mean((1, 2)), torch.stack([m.float().mean() for m in batch["masks"]]), atol=0.02
    )
    # The CNN is frozen, its statistics too; all else that the loss can reach moves.
    before = {key: value.clone() for key, value in stage.model.cnn.state_dict().items()}
    stage.train()(batch)["loss"].backward()
    assert all(torch.equal(value, before[key]) for key, value in stage.model.cnn.state_dict().items())
    moved = {name for name, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for part in ("text", "image", "fusion", "projection", "fine_map", "refinement", "seg_projection", "map_bias"):
        assert any(name.startswith(f"model.{part}") for name in moved), part
    assert any(name.startswith("model.sam.mask_decoder") for name in moved)
    assert not any(name.startswith(("model.cnn", "model.sam.vision", "model.sam.prompt")) for name in moved)


def test_gradients_reach_the_fusion_through_the_points_alone(parts: dict[str, ModuleType], network: Any) -> None:
    frame = ImageFrame(40, 60, lmm_size=64, mask_size=32, view="stretch")
    packed = pack(parts, [["the red cup", "where is the saw?"]])
    h_img = network.image_tokens(network.look(torch.randn(1, 3, 64, 64))["stride16"])
    fused = network.fuse(packed, h_img)
    points = network.find_points(fused.scores, packed.images, [frame])
    assert all(len(point.xy) for point in points)
    embeddings = torch.randn(1, 16, 4, 4)
    masks_from_prompts(network.sam, points, None, [0, 0], embeddings, [frame]).square().sum().backward()
    for part in (network.fusion.encoder, network.text.encoder, network.image.encoder, network.projection):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    # The other head: where its features are taken from, and nothing else.
    network.zero_grad()
    fused = network.fuse(packed, h_img.detach())
    points = network.find_points(fused.scores, packed.images, [frame])
    blind = fused._replace(h_seg=fused.h_seg.detach(), scores=fused.scores.detach())
    fine = torch.randn(1, 8, 16, 16)
    network.feature_masks(blind, points, packed.images, fine, [frame]).square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in network.fusion.parameters() if p.grad is not None) > 0


def test_a_batch_is_what_single_calls_give(parts: dict[str, ModuleType], network: Any) -> None:
    rows = [["the red cup", "saw", "there is no saw, but where is the cup?"], ["it is the cup"], []]
    h_img = network.image_tokens(network.look(torch.randn(3, 3, 64, 64))["stride16"])
    packed = pack(parts, rows)
    assert packed.images.tolist() == [0, 0, 0, 1]
    together = network.fuse(packed, h_img)
    fine = torch.randn(3, 8, 16, 16)
    frames = [
        ImageFrame(40, 60, 64, 32, "stretch"),
        ImageFrame(50, 30, 64, 32, "stretch"),
        ImageFrame(32, 32, 64, 32, "stretch"),
    ]
    points = network.find_points(together.scores, packed.images, frames)
    masks = network.feature_masks(together, points, packed.images, fine, frames)
    number = 0
    for image, row in enumerate(rows):
        for question in row:
            one = pack(parts, [[question]])
            alone = network.fuse(one, h_img[image : image + 1])
            for mine, its in zip(together, alone, strict=True):
                torch.testing.assert_close(mine[number], its[0], rtol=1e-4, atol=1e-4)
            own = network.find_points(alone.scores, one.images, frames[image : image + 1])
            mask = network.feature_masks(alone, own, one.images, fine[image : image + 1], frames[image : image + 1])
            torch.testing.assert_close(masks[number], mask[0], rtol=1e-3, atol=1e-3)
            number += 1


def test_feature_masks_are_the_formula(parts: dict[str, ModuleType], network: Any) -> None:
    """A 16 x 16 image: pixel (x, y) is cell (x, y) of the fine map."""
    frame = ImageFrame(16, 16, lmm_size=64, mask_size=32, view="stretch")
    fine = torch.randn(1, 8, 16, 16)
    fused = parts["model"].Fused(torch.randn(1, 16), torch.randn(1, 16), torch.zeros(1))
    points = [Points(torch.tensor([[3.0, 5.0], [7.0, 2.0], [0.0, 15.0], [9.0, 9.0]]), torch.tensor([1, 1, 0, -1]))]
    with torch.no_grad():
        network.map_bias.fill_(0.25)
        found = network.feature_masks(fused, points, torch.tensor([0]), fine, [frame])[0]
        inside = (fine[0, :, 5, 3] + fine[0, :, 2, 7]) / 2
        weights = network.refinement(torch.cat([fused.h_seg[0], inside, fine[0, :, 15, 0]]))
        rough = (fused.scores / 4 + 0.25).view(1, 1, 4, 4)
        rough = torch.nn.functional.interpolate(rough, (16, 16), mode="bilinear", align_corners=False)[0, 0]
        for y, x in ((0, 0), (5, 3), (10, 12)):
            expected = weights @ fine[0, :, y, x] / math.sqrt(8) + rough[y, x]
            torch.testing.assert_close(found[y, x], expected)
        # A map without a range has no points: then there are no features to take, and still a mask.
        none = network.find_points(torch.zeros(1, 16), torch.tensor([0]), [frame])
        assert not len(none[0].xy)
        assert network.feature_masks(fused, none, torch.tensor([0]), fine, [frame]).isfinite().all()


def test_it_refuses_what_it_says_is_not_there(trained: Path, parts: dict[str, ModuleType]) -> None:
    referring = parts["answering"].load(trained / "model")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8))
    bias = referring.model.heads["present"].bias
    for head in ("sam", "features"):
        with torch.no_grad():
            bias.fill_(-100.0)
        refused = referring.segment(image, ["the cow", "the saw"], head=head)
        assert [(r.answer, r.present, r.masks.shape) for r in refused] == [("no.", False, (0, 60, 80))] * 2
        assert all(r.presence < 1e-6 for r in refused)
        with torch.no_grad():
            bias.fill_(100.0)
        found = referring.segment(image, ["the cow", "the saw"], head=head)
        assert [(r.answer, r.present, r.masks.shape) for r in found] == [("yes [SEG].", True, (1, 60, 80))] * 2
        alone = referring.segment(image, ["the saw"], head=head)[0]
        assert np.mean(alone.masks[0] != found[1].masks[0]) < 0.01 and len(alone.points_xy) == 30
    assert referring.segment(image, []) == []


def test_the_weights_of_the_repository_find_and_refuse(parts: dict[str, ModuleType]) -> None:
    referring = parts["answering"].load(FOLDER.parents[1] / "weights" / "referring")
    image = Image.open(FOLDER.parent / "reasoning.png").convert("RGB")
    truth = np.asarray(Image.open(FOLDER.parent / "reasoning_truth.png").convert("L")) > 0
    for head in ("sam", "features"):
        found, refused = referring.segment(image, ["the bird that can talk", "where is the owl?"], head=head)
        assert (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.8
        assert not refused.present and refused.presence < 0.1


def test_bad_input_is_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "in.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    broken, cut, foreign, wordless, garbled = (
        tmp_path / name for name in ("broken", "cut", "foreign", "wordless", "garbled")
    )
    for folder in (broken, cut, foreign, wordless, garbled):
        shutil.copytree(trained / "model", folder)
    (broken / "config.json").write_text("{")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    (wordless / "tokenizer.json").unlink()
    (garbled / "tokenizer.json").write_text("{")
    values = json.loads((foreign / "config.json").read_text())
    values["sizes"]["width"] = 32
    (foreign / "config.json").write_text(json.dumps(values))
    draw = ("segment", picture, "the cow", "--out", tmp_path / "out.png", "--model")
    cases = (
        ((*draw, tmp_path / "nowhere"), "config.json is missing"),
        ((*draw, broken), "broken/config.json"),
        ((*draw, cut), "cut/model.safetensors"),
        ((*draw, foreign), "of another shape"),
        ((*draw, wordless), "wordless/tokenizer.json: no such file"),
        ((*draw, garbled), "garbled/tokenizer.json: damaged"),
        (("segment", tmp_path / "no.png", "the cow", "--out", tmp_path / "out.png"), "no.png"),
        (("segment", picture, " ", "--out", tmp_path / "out.png", "--model", trained / "model"), "question is empty"),
        (("segment", picture, "the cow", "--out", tmp_path / "out.bmp", "--model", trained / "model"), ".png"),
        (("train", "--out", tmp_path / "new", "--size", "width=some"), "NAME=NUMBER"),
        (("train", "--out", tmp_path / "new", "--size", "wide=8"), "'wide'"),
        (("train", "--out", tmp_path / "new", "--size", "width=50"), "multiple of heads"),
        (("train", "--out", tmp_path / "new", "--only", "fusion"), "train the stage before"),
        (("evaluate", "--model", tmp_path / "nowhere", "--out", tmp_path / "s"), "config.json is missing"),
    )
    for words, told in cases:
        assert run(monkeypatch, *words) == 2, words
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1, (words, said)
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("head", "cut", "told"),
    [(b'{"key": "scene-5', b"", None), (b"[]\n5\n{}\n\xff\n", b"", None), (b"", b"scene-500000/0", "damaged")],
)
def test_presence_that_a_kill_damaged(
    parts: dict[str, ModuleType], tmp_path: Path, head: bytes, cut: bytes, told: str | None
) -> None:
    scoring, path, keys = parts["scoring"], tmp_path / "presence.jsonl", ["scene-500000/0", "scene-500000/1"]
    lines = b"".join(json.dumps({"key": key, "presence": 0.25}).encode() + b"\n" for key in keys)
    path.write_bytes(head)
    scoring._end_half_line(path)
    with path.open("ab") as stream:
        stream.write(lines.replace(cut, b"other") if cut else lines)
    if told is None:
        scoring._tidy(path, keys)
        assert path.read_bytes() == lines
        return
    before = path.read_bytes()
    with pytest.raises(ReadsegError, match=f"{told}: it does not say .* 1 questions .*, such as scene-500000/0"):
        scoring._tidy(path, keys)
    assert path.read_bytes() == before


def test_what_stands_beside_it_answers_the_same_questions(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "--model", trained / "model", "--head", "sam")
    assert run(monkeypatch, *words, "--out", tmp_path / "few", "-n", 1) == 0
    few = tmp_path / "few" / "sam" / "predictions.jsonl"
    assert run(monkeypatch, *words, "--out", tmp_path / "all", "-n", 2, "--beside", few) == 0
    text = (tmp_path / "all" / "comparison.md").read_text()
    count = len(read_result(few).outcomes)
    assert len(read_result(tmp_path / "all" / "sam" / "predictions.jsonl").outcomes) > count
    kinds = [line.split("|") for line in text.splitlines() if line.startswith("| new scenes")]
    assert kinds and all(cells[3] == cells[4] for cells in kinds), "over the questions that both were asked"
    assert "not all systems were asked are left out: 6 of" in text
    lines = few.read_text().splitlines(keepends=True)
    other = json.loads(lines[1])
    few.write_text("".join([lines[0], json.dumps(other | {"question": "the cow"}) + "\n", *lines[2:]]))
    capsys.readouterr()
    assert run(monkeypatch, *words, "--out", tmp_path / "all", "-n", 2, "--beside", few) == 2
    told = capsys.readouterr().err
    assert "its question is not that of" in told and told.count("\n") == 1


def test_a_size_that_is_given_is_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "--out", tmp_path / "run", "--size", "vocabulary=5") == 2
    assert "there is no 'vocabulary'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"channels": 64}, {"depths": (1, 2)}, {"depths": (1, 0, 1)}, {"width": (1, 2)}, {"inner": 0}, {"stem": "x"}],
)
def test_sizes_that_make_no_sense_are_named(parts: dict[str, ModuleType], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(change))}: expected .* from 1 on.*, got "):
        parts["model"].ReferringConfig.from_dict({"vocabulary": 9, **change})


def test_too_few_channels_are_refused(parts: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match=r"channels: expected at least 16 in each stage, got \(48, 8, 160\)"):
        parts["model"].ReferringConfig(vocabulary=9, channels=(48, 8, 160))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_in_either_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, "train", "--out", out, *TRAIN, "--set", f"precision={precision}") == 0
    assert f'"cnn.computes in": "{precision}"' in (out / "settings.json").read_text(encoding="utf-8")


def test_a_question_of_no_unicode_is_asked(parts: dict[str, ModuleType]) -> None:
    ids = parts["model"].question_ids
    assert ids(small_tokenizer(), "the \udc80 cat") == ids(small_tokenizer(), "the ? cat")
