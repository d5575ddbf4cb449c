"""The command line: which command, `--help`, and every mistake as one line with exit code 2."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from typing import NoReturn

import pytest

import explainguide
from explainguide.cli import COMMANDS, main
from explainguide.cli import program as cli
from explainguide.errors import DataError


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What is on stderr, if it is one line of this program and stdout is empty."""
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("explainguide: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("explainguide: ").rstrip("\n")


class _Command:
    """A command that ends as it is told to."""

    HELP, EXAMPLE = "fail", "explainguide demo"

    def __init__(self, ending: BaseException) -> None:
        self.ending = ending

    def add_arguments(self, parser: object) -> None:
        pass

    def run(self, args: object) -> NoReturn:
        raise self.ending


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch):
    def prepare(ending: BaseException) -> None:
        monkeypatch.setattr(cli, "_load", lambda name: _Command(ending))

    return prepare


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"explainguide {explainguide.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_every_command_is_listed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in COMMANDS)
    assert "explainguide demo" in output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"explainguide.cli.{name}")
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.rstrip().endswith(module.EXAMPLE.rstrip())
    assert module.EXAMPLE.startswith(f"explainguide {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    module = importlib.import_module(f"explainguide.cli.{name}")
    assert COMMANDS[name] == module.HELP


def test_listing_the_commands_imports_none_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(cli, "_load", refuse)
    assert main(["--help"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explian"],
            "unknown command 'explian'. Did you mean 'explain'? "
            "The commands are demo, train, sweep, evaluate, explain, convert, layers.",
        ),
        (
            ["demo", "--epoch", "3"],
            "unknown option '--epoch' of explainguide demo. Did you mean '--epochs' or '--out'? "
            "`explainguide demo --help` lists them all.",
        ),
        (
            ["demo", "--epoch=3"],
            "unknown option '--epoch' of explainguide demo. Did you mean '--epochs' or '--out'? "
            "`explainguide demo --help` lists them all.",
        ),
        (
            ["demo", "now"],
            "explainguide demo takes no 'now' here. Quote a value that holds a space. "
            "`explainguide demo --help` shows what it takes.",
        ),
        (
            ["--vresion"],
            "unknown option '--vresion' of explainguide. Did you mean '--version'? "
            "`explainguide --help` lists them all.",
        ),
        (
            ["demo", "--seed", "x"],
            "argument --seed: invalid int value: 'x'. See `explainguide demo --help`.",
        ),
        (
            ["layers"],
            "the following arguments are required: MODEL. See `explainguide layers --help`.",
        ),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said(capsys) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("no folder.\nLook again."), "demo: no folder. Look again."),
        (FileNotFoundError(2, "No such file", "a.png"), "No such file: 'a.png'."),
        (
            OSError(28, "No space left on device"),
            "the disk is full. Free some space, or choose another folder.",
        ),
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'. Install it with pip."),
        (ImportError("x wants y."), "x wants y. Install it with pip."),
        (ImportError(), "ImportError without a text. Install it with pip."),
        (OSError(), "OSError without a text"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            "the memory is full. Use smaller images or batches.",
        ),
    ],
)
def test_an_expected_error_is_one_line_and_code_2(
    error: Exception, message: str, ends_with, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_with(error)
    assert main(["demo"]) == 2
    assert said(capsys) == message


def test_a_defect_is_one_line_and_code_1(ends_with, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(ZeroDivisionError("division by zero"))
    assert main(["demo"]) == 1
    expected = (
        "ZeroDivisionError: division by zero (this should not happen; --traceback shows where)"
    )
    assert said(capsys) == expected


def test_a_defect_without_a_text_is_named(ends_with, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(AssertionError())
    assert main(["demo"]) == 1
    expected = "AssertionError without a text (this should not happen; --traceback shows where)"
    assert said(capsys) == expected


def test_traceback_lets_an_error_through(ends_with) -> None:
    ends_with(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["demo", "--traceback"])


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []

    class Warns:
        HELP = EXAMPLE = ""

        @staticmethod
        def add_arguments(parser) -> None:
            pass

        @staticmethod
        def run(args) -> int:
            for kind in (UserWarning, FutureWarning):
                texts.append(warnings.formatwarning(kind("a\nb"), kind, "file.py", 3))
            return 0

    monkeypatch.setattr(cli, "_load", lambda name: Warns)
    usual = warnings.formatwarning
    assert main(["demo"]) == 0
    assert texts[0] == "explainguide: warning: a b\n"
    assert texts[1].startswith("file.py:3: FutureWarning")
    assert warnings.formatwarning is usual


def test_interrupting_is_one_line_and_code_130(
    ends_with, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_with(KeyboardInterrupt())
    assert main(["demo"]) == 130
    assert said(capsys) == "interrupted."


@pytest.mark.slow
def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "explainguide", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("explainguide: unknown command 'trian'. Did you mean 'train'?")


@pytest.mark.slow
def test_a_reader_who_stops_reading_is_no_error() -> None:
    program = f"{sys.executable} -m explainguide layers resnet18 --all"
    done = subprocess.run(
        ["sh", "-c", f"{program} | head -n 1"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "resnet18: every module, in running order\n"
    assert done.stderr == ""
