"""The command line: one module a command."""

from explainguide.cli.program import COMMANDS, main

__all__ = ["COMMANDS", "main"]
