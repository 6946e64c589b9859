"""Reasoning segmentation: ask for an object in words, get an answer, its mask and the points that found it.

    >>> import readseg
    >>> readseg.__version__
    '0.1.0'

The names below are imported when they are first used (PEP 562): `import readseg` costs milliseconds and
does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from readseg.core.sasp import PointConfig as PointConfig
    from readseg.errors import ReadsegError as ReadsegError
    from readseg.inference.result import Segmentation as Segmentation
    from readseg.inference.segmenter import Segmenter as Segmenter
    from readseg.model.config import ReadConfig as ReadConfig
    from readseg.model.modeling import ReadModel as ReadModel
    from readseg.model.modeling import ReadOutput as ReadOutput
    from readseg.model.processing import ReadProcessor as ReadProcessor

__version__ = "0.1.0"

_HOMES = {
    "PointConfig": "core.sasp",
    "ReadConfig": "model.config",
    "ReadModel": "model.modeling",
    "ReadOutput": "model.modeling",
    "ReadProcessor": "model.processing",
    "ReadsegError": "errors",
    "Segmentation": "inference.result",
    "Segmenter": "inference.segmenter",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the module that holds a public name, at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'readseg' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    value = getattr(import_module(f"readseg.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the lazy names too, so that completion finds them."""
    return sorted({*globals(), *_HOMES})
