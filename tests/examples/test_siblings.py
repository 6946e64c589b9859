"""Siblings: what differs is kept in 8 bits and nothing else, and a file meets no model that it was not made beside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import commandline
from readseg.checkpoints.base_models import ORIGINAL_SAM_DECODER
from readseg.errors import ReadsegError
from readseg.inference.segmenter import Segmenter
from readseg.training.config import TrainConfig
from readseg.training.recipe import run_recipe
from readseg.training.stages import read
from scripts import load as load_script
from scripts import run
from small import picture, small_model, small_processor
from tiny_segmenter import build

Capture = pytest.CaptureFixture[str]
HEAD, TOWER = "lmm.lm_head.weight", "lmm.model.vision_tower.embeddings.class_embedding"
NORM, PROMPTS = "lmm.model.language_model.norm.weight", "sam.prompt_encoder.not_a_point_embed.weight"
DECODER, PROJECTION = "sam.mask_decoder.iou_token.weight", "seg_projection.0.weight"
CHANGED = (HEAD, NORM, DECODER, PROJECTION, "map_bias")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("siblings")


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes tensors of a file in place, as another training run would have."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(state)
    save_file(state, folder / file, metadata={"format": "pt"})


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few channels in bfloat16, "base", and "seg", which differs in `CHANGED` and its settings."""
    root = tmp_path_factory.mktemp("models")
    model = small_model().bfloat16()
    model.save_pretrained(root / "base")
    small_processor().save_pretrained(root / "base")
    decoder = model.sam.mask_decoder.state_dict()
    save_file(
        {f"mask_decoder.{n}": (w + 1).contiguous() for n, w in decoder.items()}, root / "base" / ORIGINAL_SAM_DECODER
    )
    shutil.copytree(root / "base", root / "seg")
    generator = torch.Generator().manual_seed(5)

    def learn(state: dict[str, Tensor]) -> None:
        for name in CHANGED:
            state[name] += torch.randn(state[name].shape, generator=generator).bfloat16()

    rewrite(root / "seg", "model.safetensors", learn)
    set_config(root / "seg", prompt="seg", map_loss_weight=0.5)
    return root


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    """Copies of both models, to be spoilt, and the packed sibling's folder."""
    for name in ("base", "seg"):
        shutil.copytree(models / name, tmp_path / name)
    return tmp_path


def pack(script: ModuleType, place: Path, name: str = "seg") -> Path:
    script.pack(name, place / "seg", place / "base", place / "packed")
    return place / "packed" / f"{name}.safetensors"


def unpack(script: ModuleType, place: Path, *names: str) -> None:
    script.unpack(place / "out", list(names) or None, place / "base", place / "packed")


# -- 8 bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 40), (5, 3, 2, 2), (1, 9)])
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0, 1e4])
def test_rounding_is_off_by_half_a_step_at_most(script: ModuleType, shape: tuple[int, ...], size: float) -> None:
    weight = torch.randn(shape) * size
    quantised, scale = script.quantise(weight)
    assert (quantised.dtype, scale.dtype) == (torch.int8, torch.float16)
    assert quantised.shape == weight.shape and scale.shape == shape[:1] and quantised.abs().max() <= 127
    for row, numbers, step in zip(weight, quantised, scale.double(), strict=True):
        error = (row.double() - numbers.double() * step).abs().max()
        assert error <= step / 2 * (1 + 1e-6)
        # The highest weight of the row decides, within what float16 can tell: 2^-10 of it, or 2^-24.
        assert step <= row.abs().max().double() / 127 * (1 + 2**-10) + 2**-24
    expected = quantised.numpy().astype(np.float64) * scale.numpy().reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(script.restore(quantised, scale), expected, rtol=1e-6)


def test_rows_have_their_own_scale_and_zeros_stay(script: ModuleType) -> None:
    weight = torch.tensor([[127.0, -63.4, 1.0], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.003]])
    quantised, scale = script.quantise(weight)
    assert quantised.tolist() == [[127, -63, 1], [0, 0, 0], [-127, 63, 0]]
    assert scale[:2].tolist() == [1.0, 0.0] and scale[2].item() == pytest.approx(1 / 127, rel=1e-3)


# -- there and back ----------------------------------------------------------------------------------------------------


def test_only_what_differs_is_kept(script: ModuleType, place: Path, capsys: Capture) -> None:
    path = pack(script, place)
    kept = load_file(path)
    matrices = {name for name in CHANGED if state_of(place / "base")[name].ndim > 1}
    assert matrices == {HEAD, DECODER, PROJECTION}
    assert kept.keys() == set(CHANGED) | {f"{name}.scale" for name in matrices}
    assert {name: tensor.dtype for name, tensor in kept.items() if name in CHANGED} == {
        name: torch.int8 if name in matrices else torch.bfloat16 for name in CHANGED
    }
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["format"] == "readseg-sibling-1" and len(told["shared"]) == 16
    assert json.loads(told["settings"]) == {"prompt": "seg", "map_loss_weight": 0.5}
    printed = capsys.readouterr().out
    assert f"{path}: {path.stat().st_size / 1e6:.2f} MB, 5 tensors, prompt=seg, map_loss_weight=0.5\n" == printed
    assert [one.name for one in path.parent.iterdir()] == ["seg.safetensors"]


def test_what_comes_back_is_the_sibling_to_8_bits(script: ModuleType, place: Path, capsys: Capture) -> None:
    pack(script, place)
    unpack(script, place)
    base, sibling, found = (state_of(place / name) for name in ("base", "seg", "out/seg"))
    assert found.keys() >= base.keys(), "SAM's Fourier features have two names, and files hold one or both"
    for name in base:
        weight = found[name]
        assert weight.dtype == base[name].dtype, name
        if name not in CHANGED or weight.ndim < 2:
            assert torch.equal(weight, sibling[name]), name
            continue
        highest = sibling[name].float().abs().amax(dim=1, keepdim=True)
        error = (weight.float() - sibling[name].float()).abs()
        assert (error <= highest * (1.01 / 254 + 2**-8)).all(), "half a step, and bfloat16's rounding"
        assert error.max() > 0
    for name in ("tokenizer.json", ORIGINAL_SAM_DECODER):
        assert (place / "out" / "seg" / name).read_bytes() == (place / "base" / name).read_bytes()
    assert f"{place / 'out' / 'seg'}: prompt=seg, map_loss_weight=0.5" in capsys.readouterr().out


def test_a_whole_model_that_is_prompted_as_it_was_trained(script: ModuleType, place: Path) -> None:
    pack(script, place)
    unpack(script, place, "seg")
    found, base = (Segmenter.from_pretrained(place / name, device="cpu") for name in ("out/seg", "base"))
    assert (found.model.config.prompt, found.model.config.map_loss_weight) == ("seg", 0.5)
    assert found.model.config.points == base.model.config.points
    results = [one.segment(picture(), "the red cup", force="it is [SEG].") for one in (found, base)]
    assert [len(result.points_xy[0]) for result in results] == [0, 5]


def test_siblings_stand_beside_each_other(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "base")
    shutil.copytree("base", "seg")
    rewrite(Path("seg"), "model.safetensors", lambda state: state[DECODER].add_(0.5))
    set_config(Path("seg"), prompt="seg")
    pack(script, tmp_path)
    unpack(script, tmp_path)
    capsys.readouterr()
    words = ("ablate", "prompt", "scenes", "-n", 1, "--device", "cpu", "--out", "ablation")
    assert commandline.run(monkeypatch, *words, "--model", "base", "--model", "out/seg") == 0
    trained = json.loads(Path("ablation/prompt.json").read_text())["tables"][-1]["rows"]
    assert [row["name"] for row in trained] == ["base", "seg"]
    own = [row["cells"]["setting"] for row in trained]
    assert own[0].startswith("[SEG] and points") and own[1] == "[SEG] only"


def test_names_that_are_left_out_mean_all(script: ModuleType, place: Path) -> None:
    pack(script, place)
    pack(script, place, "other")
    unpack(script, place)
    assert sorted(one.name for one in (place / "out").iterdir()) == ["other", "seg"]


def test_a_base_whose_learned_weights_are_others_will_do(script: ModuleType, place: Path) -> None:
    """All that the sibling takes from it is as it was."""
    pack(script, place)
    rewrite(place / "base", "model.safetensors", lambda state: [state[name].add_(1) for name in CHANGED])
    unpack(script, place)
    assert torch.equal(state_of(place / "out/seg")[NORM], state_of(place / "seg")[NORM])


def test_float32_differs_where_it_is_another_number_only(script: ModuleType, place: Path) -> None:
    """As `make_lisa.py` saves: the base's weights in float32, but for what was trained."""
    rewrite(place / "seg", "model.safetensors", lambda state: state.update({n: w.float() for n, w in state.items()}))
    kept = load_file(pack(script, place))
    assert {name for name in kept if not name.endswith(".scale")} == set(CHANGED)


# -- what is no sibling ------------------------------------------------------------------------------------------------


def _tokens(place: Path) -> None:
    path = place / "seg" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


def _points(place: Path) -> None:
    points = json.loads((place / "seg" / "config.json").read_text())["points"]
    set_config(place / "seg", points=points | {"num_points": 7})


def _tensor(name: str, change: Callable[[Tensor], Tensor], file: str = "model.safetensors") -> Callable[[Path], None]:
    return lambda place: rewrite(place / "seg", file, lambda state: state.update({name: change(state[name])}))


NOT_A_SIBLING: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "tower": (_tensor(TOWER, lambda w: w + 1), rf"{TOWER} differs, which stage 2 leaves as it is"),
    "prompts": (_tensor(PROMPTS, lambda w: -w), rf"{PROMPTS} differs, which stage 2 leaves"),
    "plain": (
        _tensor("mask_decoder.iou_token.weight", lambda w: w + 1, ORIGINAL_SAM_DECODER),
        rf"mask_decoder\.iou_token\.weight of {ORIGINAL_SAM_DECODER} differs",
    ),
    "tokenizer": (_tokens, r"its tokenizer\.json differs"),
    "points": (_points, r"in config\.json points\.num_points is 7 and not 5; only map_loss_weight and prompt may"),
    "shape": (_tensor(NORM, lambda w: w[:-1]), r"norm"),
    "missing": (lambda place: rewrite(place / "seg", "model.safetensors", lambda state: state.pop(NORM)), r"norm"),
    "nan": (_tensor(HEAD, lambda w: w * float("nan")), rf"{HEAD} holds values that are no numbers"),
    "same": (
        lambda place: shutil.copy(place / "base" / "model.safetensors", place / "seg"),
        r"has the weights of .*base: there is nothing to pack",
    ),
    "no model": (lambda place: (place / "seg" / "config.json").unlink(), r"seg holds no model"),
}


@pytest.mark.parametrize("case", NOT_A_SIBLING)
def test_no_sibling_is_refused_by_name(case: str, script: ModuleType, place: Path) -> None:
    spoil, message = NOT_A_SIBLING[case]
    spoil(place)
    with pytest.raises(ReadsegError, match=message):
        pack(script, place)
    assert not list((place / "packed").glob("*")) if (place / "packed").exists() else True


def test_a_model_without_the_plain_decoder_is_taken(script: ModuleType, place: Path) -> None:
    """It cannot be compared then; what is unpacked has the base's."""
    (place / "seg" / ORIGINAL_SAM_DECODER).unlink()
    pack(script, place)
    unpack(script, place)
    assert (place / "out" / "seg" / ORIGINAL_SAM_DECODER).is_file()


# -- unpacking elsewhere, damaged, in the way --------------------------------------------------------------------------

OTHER_BASES: Mapping[str, tuple[str, str]] = {
    "frozen": ("model.safetensors", TOWER),
    "learned, but the sibling's too": ("model.safetensors", "lmm.model.multi_modal_projector.linear_1.weight"),
    "plain": (ORIGINAL_SAM_DECODER, "mask_decoder.iou_token.weight"),
}


@pytest.mark.parametrize("case", OTHER_BASES)
def test_on_another_base_it_says_so_in_one_line(
    case: str, script: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    path = pack(script, place)
    file, name = OTHER_BASES[case]
    rewrite(place / "base", file, lambda state: state[name].add_(1))
    capfd.readouterr()
    words = ("unpack", "--out", place / "out", "--base", place / "base", "--packed", place / "packed")
    assert run(monkeypatch, "siblings", *words) == 2
    error = capfd.readouterr().err.strip()
    assert f"{path} was packed beside another model" in error and "\n" not in error
    assert not (place / "out").exists()


def resave(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    with safe_open(path, "pt") as file:
        told = file.metadata()
    kept = load_file(path)
    change(kept, told)
    save_file(kept, path, metadata=told or None)


DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"seg\.safetensors is damaged"),
    "no weights": (lambda path: path.write_text("no weights"), r"seg\.safetensors is damaged"),
    "other file": (lambda path: resave(path, lambda _, told: told.clear()), r"of format 'readseg-sibling-1', got None"),
    "later": (lambda path: resave(path, lambda _, told: told.update(format="readseg-sibling-2")), r"got 'readseg-sib"),
    "no settings": (lambda path: resave(path, lambda _, told: told.pop("settings")), r"expected the settings map_loss"),
    "odd prompt": (
        lambda path: resave(path, lambda _, told: told.update(settings='{"prompt": "x", "map_loss_weight": 1}')),
        r"expected the settings map_loss_weight and prompt",
    ),
    "odd weight": (
        lambda path: resave(path, lambda _, told: told.update(settings='{"prompt": "seg", "map_loss_weight": NaN}')),
        r"expected the settings",
    ),
    "no scale": (lambda path: resave(path, lambda kept, _: kept.pop(f"{HEAD}.scale")), rf"{HEAD} is neither bfloat16"),
    "short scale": (
        lambda path: resave(path, lambda kept, _: kept.update({f"{HEAD}.scale": torch.ones(2).half()})),
        rf"{HEAD} is neither",
    ),
    "scale alone": (lambda path: resave(path, lambda kept, _: kept.pop(HEAD)), rf"{HEAD}\.scale is the scale of no"),
    "less": (lambda path: resave(path, lambda kept, _: kept.pop(NORM)), r"packed beside another model"),
    "frozen": (
        lambda path: resave(path, lambda kept, _: kept.update({TOWER: torch.zeros(16).bfloat16()})),
        rf"{TOWER} \(16,\) is nothing that .*base learns",
    ),
    "shape": (
        lambda path: resave(path, lambda kept, _: kept.update({NORM: torch.zeros(3).bfloat16()})),
        rf"{NORM} \(3,\) is nothing that",
    ),
    "nan": (
        lambda path: resave(path, lambda kept, _: kept[NORM].fill_(float("nan"))),
        rf"{NORM} holds values that are no numbers",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_refused(case: str, script: ModuleType, place: Path) -> None:
    path = pack(script, place)
    damage, message = DAMAGES[case]
    damage(path)
    with pytest.raises(ReadsegError, match=message):
        unpack(script, place)
    assert not (place / "out" / "seg").exists()


def test_one_bad_file_of_two_leaves_nothing(script: ModuleType, place: Path) -> None:
    pack(script, place)
    pack(script, place, "also").write_text("no weights")
    with pytest.raises(ReadsegError, match=r"also\.safetensors is damaged"):
        unpack(script, place, "seg", "also")
    assert not (place / "out").exists()


def test_nothing_is_half_written(script: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(script, place)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(script.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        unpack(script, place)
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pack", "seg", "{0}/seg"), "seg.safetensors is there already: remove it, or choose another NAME"),
        (("pack", "../seg", "{0}/seg"), "NAME '../seg': expected letters"),
        (("pack", "new", "{0}/nowhere"), "nowhere"),
        (("pack", "new"), "Missing argument"),
        (("unpack", "points", "--out", "{0}/out"), "no sibling 'points' in {0}/packed: there is seg"),
        (("unpack", "--out", "{0}"), "{0}/seg is there already: remove it, or choose another --out"),
        (("unpack", "--out", "{0}/base/config.json"), "config.json"),
        (("unpack", "--out", "{0}/out", "--packed", "{0}/none"), "no sibling in {0}/none: pack one first"),
        (("unpack",), "--out"),
        (("stages", "--out", "{0}/taken"), "{0}/taken/vision is there already: remove it, or choose another --out"),
        (("stages", "--out", "{0}/base/config.json"), "config.json"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    message: str,
    script: ModuleType,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    pack(script, place)
    (place / "taken" / "vision").mkdir(parents=True)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    capfd.readouterr()
    given = [word.format(place) for word in words]
    given += [] if "--packed" in given or given[0] == "stages" else ["--packed", str(place / "packed")]
    assert run(monkeypatch, "siblings", *given, "--base", place / "base") == 2
    shown = capfd.readouterr()
    error = shown.err.strip()
    assert message.format(place) in error and "\n" not in error and "Traceback" not in error and shown.out == ""
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


# -- trained from the same stages 0 and 1 ------------------------------------------------------------------------------

COMMON = {"steps": 1, "images_per_step": 1, "learning_rate": 1e-3, "warmup_steps": 1, "precision": "fp32"}


def recipe(**changes: Any) -> TrainConfig:
    """The stages of the preset, as short as can be; `changes` are stage 2's."""
    last = {"kind": "read", "name": "read", "questions_per_image": 3, "images": 1, "map_loss_weight": 2.0} | changes
    stages = [
        {"kind": "masks", "name": "masks", "masks_per_image": 2, **COMMON},
        {"kind": "vision", "name": "vision", **COMMON},
        {**last, **COMMON},
    ]
    return TrainConfig.model_validate({"seed": 3, "vocabulary": 400, "stages": stages})


def test_stages_0_and_1_of_a_run_serve_siblings(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folders are copied, stage 2 is trained with one setting changed, and what comes out can be packed."""
    monkeypatch.setattr(read, "VOCABULARY_SCENES", 6)
    run_recipe(recipe(), tmp_path / "read")
    # The second leaves without a gradient what a sibling can: the projection of [SEG], and the map's bias.
    siblings = {"seg": {"prompt": "seg"}, "bare": {"prompt": "points", "map_loss_weight": 0.0}}
    for name, changes in siblings.items():
        for stage in ("masks", "vision"):
            shutil.copytree(tmp_path / "read" / stage, tmp_path / name / stage)
        shutil.copytree(tmp_path / "read" / "cache", tmp_path / name / "cache")
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / name).rglob("*.safetensors")}
        assert len(stamps) == 3, "two stages, and the encoders' features of one image"
        model = run_recipe(recipe(**changes), tmp_path / name, only="read")
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "neither trained nor encoded anew"
        script.pack(name, model, tmp_path / "read" / "model", tmp_path / "packed")
        with safe_open(tmp_path / "packed" / f"{name}.safetensors", "pt") as file:
            expected = {"prompt": "both", "map_loss_weight": 2.0} | changes
            assert json.loads(file.metadata()["settings"]) == expected
    script.unpack(tmp_path / "out", None, tmp_path / "read" / "model", tmp_path / "packed")
    for name, changes in siblings.items():
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert {key: config[key] for key in changes} == changes


def test_stages_0_and_1_come_out_of_a_model(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its run had them, rounded to the model's bfloat16, but for Fourier features, which it keeps as they are."""
    monkeypatch.setattr(read, "VOCABULARY_SCENES", 6)
    model = run_recipe(recipe(), tmp_path / "read")
    script.stages(tmp_path / "again", model)
    for stage in ("masks", "vision"):
        file = f"{stage}/weights.safetensors"
        found, expected = load_file(tmp_path / "again" / file), load_file(tmp_path / "read" / file)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            kept = weight if name.endswith("positional_embedding") else weight.bfloat16().float()
            assert found[name].dtype == torch.float32 and torch.equal(found[name], kept), name
    again = run_recipe(recipe(prompt="seg"), tmp_path / "again", only="read")
    script.pack("seg", again, model, tmp_path / "packed")


# -- those that are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "weight", "points", "finds"),
    [("seg", "seg", 2.0, 0, True), ("points", "points", 2.0, 30, True), ("no_map", "both", 0.0, 30, False)],
)
def test_siblings_of_the_repository_fit_the_model_that_ships(
    name: str, prompt: str, weight: float, points: int, finds: bool, script: ModuleType, tmp_path: Path
) -> None:
    """A new embedded model needs new siblings: of these `unpack` would say that they were made beside another one."""
    script.unpack(tmp_path, [name])
    sibling = Segmenter.from_pretrained(tmp_path / name, device="cpu")
    assert (sibling.model.config.prompt, sibling.model.config.map_loss_weight) == (prompt, weight)
    examples = Path(script.__file__).parent
    truth = np.asarray(Image.open(examples / "reasoning_truth.png").convert("L")) > 0
    found = sibling.segment(Image.open(examples / "reasoning.png").convert("RGB"), "the bird that can talk")
    assert found.answer == "the parrot [SEG]." and len(found.points_xy[0]) == points
    assert ((found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.7) == finds
