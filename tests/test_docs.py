"""What README.md and docs/ say exists: commands, options, links, code, names, recipes."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import create_autospec

import pytest
import typer
import yaml

from readseg import miniatures
from readseg.cli.app import app
from readseg.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOTTED = re.compile(r"[a-z_]+(\.\w+)+")
FILE_ENDINGS = (".json", ".jsonl", ".md", ".png", ".jpg", ".py", ".yaml", ".safetensors")
# Blocks that need a model, a picture of the reader's, or half a minute.
NOT_RUN = re.compile(r"from_pretrained|from_json|SceneSet")


class Block(NamedTuple):
    page: str
    language: str
    text: str


class Option(NamedTuple):
    page: str
    words: list[str]


def label(value: Any) -> str | None:
    return f"{value.page}: {value[-1]}"[:70] if isinstance(value, tuple) else None


def blocks() -> list[Block]:
    """Fenced blocks, and lines indented by four spaces, which are blocks of plain text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [Block(page.name, match[1], match[2]) for match in FENCE.finditer(text)]
        found += [Block(page.name, "", line.strip()) for line in INDENTED.findall(FENCE.sub("", text))]
    return found


def spans() -> list[tuple[str, str]]:
    """Words between backticks, outside of blocks; those of the log are history."""
    return [
        (page.name, span)
        for page in PAGES
        if page.name != "LOG.md"
        for span in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    ]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line, without redirections, comments and variables before it."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|;&<>()"):
            yield command
            command = []
        elif command or not re.fullmatch(r"\w+=.*", word):
            command.append(word)


def command_lines() -> list[Option]:
    """Every `readseg ...` of the blocks that are not Python or the like."""
    found = []
    for block in blocks():
        if block.language not in ("", "sh", "bash", "console", "text"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if re.search(r"(^|[|;&$] ?|/)readseg ", line.strip()):
                found += [Option(block.page, w) for w in simple_commands(line.strip()) if w and is_ours(w[0])]
    return found


def is_ours(program: str) -> bool:
    return Path(program).name == "readseg"


def child(group: Any, name: str) -> Any:
    """A command of a group, loaded."""
    return group.load_command(name) if hasattr(group, "load_command") else group.commands[name]


def find_command(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that some words name, its path, and the words that are left."""
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"readseg has no command {' '.join([*path, words[0]])!r}"
        command = child(command, words[0])
        path.append(words[0])
        words = words[1:]
    return command, path, words


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name in command.commands:
        yield from leaves(child(command, name), (*path, name))


def options(command: Any) -> set[str]:
    named = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return {option for option in named if option.startswith("-")} | {"--help"}


LEAVES = dict(leaves(typer.main.get_command(app)))
LINES = command_lines()
PYTHON = [block for block in blocks() if block.language == "python"]


def test_there_is_something_to_check() -> None:
    assert {"method.md", "usage.md", "training.md", "scenes.md"} <= {page.name for page in PAGES}
    assert len(LINES) > 10
    assert len(PYTHON) > 5
    assert len(LEAVES) >= 5
    assert list(simple_commands("A=1 printf 'a b' | readseg chat x.png > out; ls # all")) == [
        ["printf", "a b"],
        ["readseg", "chat", "x.png"],
        ["out"],
        ["ls"],
    ]


@pytest.mark.parametrize("line", LINES, ids=label)
def test_command_lines_are_understood(line: Option) -> None:
    command, path, rest = find_command(line.words[1:])
    if not rest or "--help" in rest or hasattr(command, "commands"):
        assert set(rest) <= {"--help"}
        return
    command.make_context(" ".join(path), list(rest))  # parses and checks, and does not run


@pytest.mark.parametrize(("words", "reason"), [("segment a.png b --colour", "--colour"), ("train", "RECIPE")])
def test_a_wrong_command_line_would_be_noticed(words: str, reason: str) -> None:
    command, path, rest = find_command(words.split())
    with pytest.raises(typer.TyperException) as error:
        command.make_context(" ".join(path), rest)
    assert reason in error.value.format_message()


def test_commands_and_options_in_sentences_exist() -> None:
    known = set().union(*(options(command) for command in LEAVES.values()))
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    for page, span in spans():
        if span.startswith("-"):
            assert span.split()[0] in known, f"{page}: no command has the option {span}"
        elif span.split()[0] == "readseg":
            command, _, rest = find_command(span.split()[1:])
            wrong = {word for word in rest if word.startswith("-")} - options(command)
            assert not wrong, f"{page}: {span} has no option {wrong}"


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    heading = f"### `readseg {'study' if path[0] == 'study' else ' '.join(path)}`\n"
    assert heading in usage
    shared = "### Options of model and points\n"
    sections = [re.split(r"^##", usage.split(start)[1], flags=re.MULTILINE)[0] for start in (heading, shared)]
    missing = {option for option in options(LEAVES[path]) - {"--help"} if f"`{option}`" not in "".join(sections)}
    assert not missing, f"docs/usage.md does not explain {missing} of {' '.join(path)}"


def anchor(heading: str) -> str:
    """The fragment that code hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {link} does not exist"
        assert file.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, f"{page.name}: {link} names no heading"


@pytest.mark.parametrize("block", PYTHON, ids=label)
def test_python_compiles_and_runs_where_it_needs_nothing(
    block: Block, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(block.text, f"{block.page}, a block", "exec")
    if "write_miniatures" in block.text:  # in place of new ones a copy of those that all tests share
        write = create_autospec(miniatures.write_miniatures)
        write.side_effect = lambda root, **_: shutil.copytree(request.getfixturevalue("data"), root)
        monkeypatch.setattr(miniatures, "write_miniatures", write)
    if not NOT_RUN.search(block.text):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        assert printed.getvalue().strip()


@pytest.mark.parametrize(
    ("page", "start", "number"),
    [
        ("method.md", "torch.manual_seed(0)", "0.0039"),
        ("scenes.md", "len(CLASSES)", "96 15 66 179"),
        ("training.md", "numel()", "10614209"),
    ],
)
def test_numbers_are_what_the_code_beside_them_prints(page: str, start: str, number: str) -> None:
    (block,) = [block for block in PYTHON if block.page == page and start in block.text]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.text, {})
    assert printed.getvalue().strip().removeprefix("tensor(").removesuffix(")") == number
    assert number in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_readme_shows_what_the_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in PYTHON if block.page == "README.md"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # it writes a picture
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.text, names)
    told = "  ".join(re.findall(r"answer\)  # (.+)", block.text)).split("  ")
    assert [line for line in printed.getvalue().splitlines() if line.endswith(".")] == told and len(told) == 3
    wrong = names["seg"].segment("examples/reasoning.png", "the red bird").answer
    assert f'asked for "the red bird" in the same picture, it says "{wrong}"' in text


def test_names_of_code_exist() -> None:
    """`module.name`, as the pages point to code, of a module of this package."""
    package = ROOT / "src" / "readseg"
    checked = 0
    for page, span in spans():
        module = span.split(".")[0]
        is_module = (package / f"{module}.py").is_file() or (package / module / "__init__.py").is_file()
        if not DOTTED.fullmatch(span) or span.endswith(FILE_ENDINGS) or not is_module:
            continue
        try:
            pkgutil.resolve_name(f"readseg.{span}")
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page}: {span} does not exist: {error}")
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("block", [block for block in blocks() if block.language == "yaml"], ids=label)
def test_recipes_are_valid(block: Block) -> None:
    assert TrainConfig.model_validate(yaml.safe_load(block.text)).stages
