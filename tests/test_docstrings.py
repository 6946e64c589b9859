"""Every public name has a docstring, and those that deal in arrays or tensors tell the shape."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import readseg

PACKAGE = Path(readseg.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# "(S, N)", "(H, W, 3)", "(N,)", "(...)", "of shape ...", or jaxtyping's Float[Tensor, "S N"] in the signature
SHAPE = re.compile(
    r"\(\s*(\w+|\.\.\.|-?\d+)\s*(,|\s\))|\(\.\.\.|\bshape|scalar|0-d|\b(H|h)\s?[x×]\s?(W|w)\b", re.IGNORECASE
)
# What is looked up by name, such as a state dict or named losses, has no one shape.
NAMED = re.compile(r"\b(dict|Mapping)\[str, [\w.]+\]")
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
SHAPED = re.compile(r"\b(Float|Int|Bool|UInt8|Shaped|Num|Integer|Real)\[")


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Classes and functions of a module, and methods of its classes, that do not start with an underscore."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree.body, "")


def is_setter_or_overload(node: Definition) -> bool:
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    return any(mark.endswith((".setter", "overload")) for mark in marks)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path}: the first lines say what the module owns"
    missing = [
        f"{path}:{node.lineno} {name}"
        for name, node in public_definitions(tree)
        if not ast.get_docstring(node) and not is_setter_or_overload(node)
    ]
    assert not missing, "without a docstring: " + ", ".join(missing)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_of_arrays_tell_the_shapes(path: Path) -> None:
    """A function whose annotations name a bare tensor or array gives shapes in its docstring."""
    silent = []
    for name, node in public_definitions(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) or is_setter_or_overload(node):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        notes = [ast.unparse(a.annotation) for a in arguments if a.annotation]
        notes += [ast.unparse(node.returns)] if node.returns else []
        notes = [NAMED.sub("", note) for note in notes]
        bare = [note for note in notes if ARRAYS.search(note) and not SHAPED.search(note)]
        if bare and not SHAPE.search(ast.get_docstring(node) or ""):
            silent.append(f"{path}:{node.lineno} {name}")
    assert not silent, "arrays without a shape in the docstring: " + ", ".join(silent)


def test_the_rule_can_fail() -> None:
    assert SHAPE.search("scores (S, N)")
    assert SHAPE.search("float32 (H, W, 3)")
    assert SHAPE.search("(M,) pixels")
    assert not SHAPE.search("Computes the mask (see above).")
    names = [
        name
        for name, _ in public_definitions(ast.parse("class A:\n  def b(self): ...\n  def _c(self): ...\ndef _d(): ..."))
    ]
    assert names == ["A", "A.b"]
