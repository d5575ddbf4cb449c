"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, write: Callable[[io.FileIO], object]) -> None:
    """Write a file beside its place, then rename it, which either happens or does not.

    Args:
        path: The file; missing folders are made.
        write: Writes the content to the open binary file, which has no buffer.

    Raises:
        OSError: If it cannot be written; an earlier file of this name is still there, and nothing
            else is left. So with whatever `write` raises.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb", buffering=0) as file:
            write(file)
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # not to hide the reason
            beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse, and the rename has happened
        pass
    finally:
        os.close(descriptor)
