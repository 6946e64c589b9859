"""The checker of shapes in signatures: beartype, which here takes an int for a float as the type system does."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
