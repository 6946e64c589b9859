"""Runs the command line as `python -m readseg`."""

from __future__ import annotations

from readseg.cli import main

if __name__ == "__main__":
    main()
