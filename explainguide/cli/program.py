"""The command line: which command is meant, its options, and errors as one line."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from explainguide.cli.settings import Later
from explainguide.cli.usage import UsageError
from explainguide.errors import (
    ExplainGuideError,
    ExplainGuideWarning,
    did_you_mean,
    first_line,
    operation,
)

__all__ = ["main"]

# Here as well as in the commands, so that the list appears before anything heavy is imported.
COMMANDS = {
    "demo": "train a network that cheats, and the same network guided; nothing to download",
    "train": "train or fine-tune a classifier with guidance",
    "sweep": "train with many settings, and find the front of F1 and EPG: how lam is chosen",
    "evaluate": "judge checkpoints, attributions and layers: a table, and a report",
    "explain": "draw what a model looks at, for chosen layers and attributions",
    "convert": "make a B-cos network, or one without biases, of a model",
    "layers": "list the layers of a model that can be guided",
}

_MISTAKE, _INTERRUPTED, _DEFECT = 2, 130, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; by default those of the process.

    Returns:
        0 on success; 2 for a mistake, which is told in one line on stderr; 130 after Ctrl-C; 1 for
        an error that is this package's own.

    Example:
        >>> main(["--version"])
        explainguide ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    traced = "--traceback" in arguments
    # Where weights cannot be downloaded, the hub's own log of ten attempts would bury the reason.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        with _warnings_in_one_line():
            options = _parse(arguments)
            with operation(options.command):
                return int(_load(options.command).run(options))
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted.", _INTERRUPTED)
    except BrokenPipeError:  # `explainguide layers resnet50 | head` has seen enough
        # Python flushes stdout at exit and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if traced:
            raise
        return _report(error)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Without the file and the line of this package that found the reason to warn."""
    usual = warnings.formatwarning

    def short(message: Any, category: Any, *where: Any, **line: Any) -> str:
        if category not in (UserWarning, ExplainGuideWarning):
            return usual(message, category, *where, **line)
        return f"explainguide: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _report(error: Exception) -> int:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return _fail(f"{error.strerror}: '{os.fsdecode(error.filename)}'.", _MISTAKE)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _fail("the disk is full. Free some space, or choose another folder.", _MISTAKE)
    text = str(error).strip()
    said = text or first_line(error)
    if isinstance(error, ExplainGuideError | OSError):
        return _fail(said, _MISTAKE)
    if isinstance(error, ImportError):
        return _fail(f"{said.rstrip('.')}. Install it with pip.", _MISTAKE)
    if "out of memory" in text.lower() or "allocate memory" in text:
        return _fail("the memory is full. Use smaller images or batches.", _MISTAKE)
    return _fail(
        f"{f'{type(error).__name__}: ' if text else ''}{said} (this should not happen; --traceback "
        "shows where)",
        _DEFECT,
    )


def _fail(message: str, code: int) -> int:
    """One line on stderr, whatever the message holds."""
    print(f"explainguide: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are exceptions, and which does not guess at abbreviations."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def format_help(self) -> str:
        """With the help that is written when it is shown."""
        for action in self._actions:
            if isinstance(action.help, Later):
                action.help = action.help.write()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def _load(command: str) -> ModuleType:
    return importlib.import_module(f"explainguide.cli.{command}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    # Only the command that is named gets its options: others need not even be imported.
    named = next((a for a in arguments if not a.startswith("-")), None)
    if named is not None and named not in COMMANDS:
        raise UsageError(
            f"unknown command {named!r}.{did_you_mean(named, COMMANDS)} "
            f"The commands are {', '.join(COMMANDS)}."
        )
    parser, command = _build_parser(named)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(unknown[0], command)
    if named is None:
        parser.print_help()
        raise SystemExit(0)
    return options


def _build_parser(named: str | None) -> tuple[_Parser, _Parser]:
    """The parser of the program, and that of the command (or again the program's)."""
    version = importlib.import_module("explainguide").__version__
    parser = _Parser(
        prog="explainguide",
        description="Guide what an image classifier looks at.",
        epilog="first steps:\n  explainguide demo\n  explainguide layers resnet50\n\n"
        "`explainguide COMMAND --help` shows the options of a command, and an example.",
    )
    parser.add_argument("--version", action="version", version=f"explainguide {version}")
    _add_traceback(parser)
    chosen = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    command_parser = parser
    for name, text in COMMANDS.items():
        if name != named:
            chosen.add_parser(name, help=text)
            continue
        module = _load(name)
        example = f"example:\n  {module.EXAMPLE}"
        command_parser = chosen.add_parser(name, help=text, description=module.HELP, epilog=example)
        module.add_arguments(command_parser)
        _add_traceback(command_parser)
    return parser, command_parser


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show where in the program an error came from",
    )


def _refuse(argument: str, parser: _Parser) -> NoReturn:
    name = argument.split("=")[0]
    if not name.startswith("-"):
        raise UsageError(
            f"{parser.prog} takes no {name!r} here. Quote a value that holds a space. "
            f"`{parser.prog} --help` shows what it takes."
        )
    known = [option for action in parser._actions for option in action.option_strings]
    raise UsageError(
        f"unknown option {name!r} of {parser.prog}.{did_you_mean(name, known)} "
        f"`{parser.prog} --help` lists them all."
    )


if __name__ == "__main__":
    sys.exit(main())
