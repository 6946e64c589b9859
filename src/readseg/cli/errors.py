"""How the command line ends: one line on stderr and a meaningful exit code, never a traceback for bad input.

0: done. 1: a bar was missed or the output's reader went away. 2: the input is bad. 130: interrupted.
"""

from __future__ import annotations

import sys
import warnings

import typer

from readseg.errors import ReadsegError

BAD_INPUT, INTERRUPTED = 2, 130


def run(app: typer.Typer) -> None:
    """Run a command and end the process.

    A `ReadsegError`, and a file that cannot be read or written, become one line on stderr and exit code 2. Our
    own warnings become one line each; those of libraries are kept for who asks for them (`python -W default`).
    Anything else is a defect of ours and keeps its traceback.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"readseg\b")
        warnings.showwarning = _show_warning
    try:
        app()
    except ReadsegError as error:
        _end(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}", BAD_INPUT)


def _end(message: str, code: int) -> None:
    print(f"readseg: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"readseg: warning: {' '.join(str(message).split())}", file=sys.stderr)
