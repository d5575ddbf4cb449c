"""Locks on files, which a process loses when it ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from explainguide.errors import DataError, first_line

__all__ = ["held", "try_to_hold"]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it within this context."""
    file = _take(path, wait=True)
    assert file is not None
    try:
        yield
    finally:
        file.close()


def try_to_hold(path: Path) -> IO[bytes] | None:
    """A lock, until what is returned is closed; None where another process holds it.

    Raises:
        DataError: Where the file cannot be made, or its file system has no locks.
    """
    return _take(path, wait=False)


def _take(path: Path, *, wait: bool) -> IO[bytes] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be opened ({first_line(error)}). Choose another folder. One that can be "
            "written to is allowed."
        ) from error
    try:
        _lock(file.fileno(), wait=wait)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError as error:
        file.close()
        raise DataError(
            f"'{path}' cannot be locked ({first_line(error)}). Choose a folder on a file system with "
            "locks. Local disks have them, and NFS from version 4 on."
        ) from error
    return file


def _lock(descriptor: int, *, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
