"""HTML pages that stand alone: a template, its data, and pictures within."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_FOLDER = Path(__file__).with_name("templates")
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# Compact, and NaN, which JSON lacks, is an error; what could end a script's element is escaped.
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
_TEMPLATES.globals["source"] = lambda name: Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _csp_hash(text: str) -> str:
    """What a Content-Security-Policy calls the one script or style sheet that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


_TEMPLATES.filters["csp_hash"] = _csp_hash


def render_page(template: str, **values: Any) -> str:
    """A page of `viz/templates`; values are escaped, `source("x.css")` includes a style sheet or a script."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as the address of an <img>, so that a page needs no other file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
