"""How the command line ends: one line on stderr and a meaningful exit code, never a traceback for bad input.

0: done. 1: the output's reader went away. 2: the input is bad. 130: interrupted. 143: told to end.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from typing import NoReturn

import typer

from readseg.errors import ReadsegError

BAD_INPUT, INTERRUPTED = 2, 130
# What torch says where a process waits for another one that is gone.
_LOST = re.compile(r"gloo|NCCL|ProcessGroup|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)


def run(app: typer.Typer) -> None:
    """Run a command and end the process.

    A wrong command line, a `ReadsegError`, and a file that cannot be read or written, become one line on stderr
    and exit code 2; our own warnings become one line each. Anything else is a defect of ours and keeps its traceback.
    """
    if not sys.warnoptions:  # who wants the libraries' warnings too says python -W default
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"readseg\b")
        warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name, or a question, that the terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    # As an exception, so that half-written files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        code = app(standalone_mode=False)
    except ReadsegError as error:
        _end(str(error), BAD_INPUT)
    except typer.TyperException as error:
        if not (message := error.format_message()):  # the help is printed already
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        hint = f"; try '{context.command_path} --help'" if context is not None else ""
        _end(message.rstrip(".") + hint, error.exit_code)
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not _LOST.search(str(error)):
            raise
        _end("another of the processes that work together has ended: see what it says", BAD_INPUT)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}", BAD_INPUT)
    if code == INTERRUPTED:
        _end("interrupted", INTERRUPTED)
    sys.exit(code)


def printable(text: str) -> str:
    """Text without what would steer a terminal: control characters as Python writes them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _end(message: str, code: int) -> NoReturn:
    print(f"readseg: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"readseg: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
