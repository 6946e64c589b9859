"""HTML pages that stand alone: a template, its data, and pictures within."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(template: str, **values: Any) -> str:
    """A page of `viz/templates`; values are escaped, style sheets and scripts are included by the template."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as the address of an <img>, so that a page needs no other file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
