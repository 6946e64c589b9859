"""The config.json of a folder: read as data, and named in whatever goes wrong because of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from readseg.errors import ReadsegError


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        ReadsegError: it is not there, no JSON, or no settings by name.
    """
    return read_json(folder / "config.json")


def read_json(place: Path) -> dict[str, Any]:
    """A file of settings by name.

    Raises:
        ReadsegError: it is not there, no JSON, or no settings by name.
    """
    if not place.is_file():
        raise ReadsegError(f"{place.parent} holds no model: expected {place.name}, weights and a tokenizer in it.")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReadsegError(f"{place} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ReadsegError(f"{place} must hold settings by name; got {type(content).__name__}.")
    return content


@contextmanager
def blaming(place: Path) -> Iterator[None]:
    """Whatever the libraries say of settings that make no sense, as an error that names the file.

    Raises:
        ReadsegError: for anything that is raised inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # as of a layer without any weight
            yield
    except Exception as error:  # they share no base class
        reason = (str(error).splitlines() or [""])[0].removeprefix("config.json: ")
        raise ReadsegError(f"{place}: {reason or type(error).__name__}") from error
