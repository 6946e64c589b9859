"""The errors that a user of the package can cause and repair. Every layer may import this module."""

from __future__ import annotations

from collections.abc import Iterable


class ReadsegError(Exception):
    """Something that the caller gave cannot be used: a file, an argument, a key of a configuration.

    The message is one line that names the thing, says what was expected and what to do. The command line
    prints it without a traceback and exits with code 2.
    """


def first_five(names: Iterable[str]) -> str:
    """A list of names that fits a line of an error, however many there are."""
    listed = sorted(name if name.isprintable() else repr(name) for name in names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
