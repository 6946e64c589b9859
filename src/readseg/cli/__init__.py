"""The command line: options in, results out; one file a command."""

from readseg.cli.app import main

__all__ = ["main"]
