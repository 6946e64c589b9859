"""The errors that a user of the package can cause and repair. Every layer may import this module."""

from __future__ import annotations


class ReadsegError(Exception):
    """Something that the caller gave cannot be used: a file, an argument, a key of a configuration.

    The message is one line that names the thing, says what was expected and what to do. The command line
    prints it without a traceback and exits with code 2.
    """
