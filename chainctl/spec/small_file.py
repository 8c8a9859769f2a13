"""Files a person wrote: read whole, with a limit, without being held up by what is no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class UnreadableFile(Exception):
    """Why, in words that go into a complaint."""


def read_small_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises UnreadableFile."""
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnreadableFile("there is no such file") from None
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise UnreadableFile("is not a possible file name") from None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableFile("is a directory, a file was expected")
        if not stat.S_ISREG(mode):
            raise UnreadableFile("is not a regular file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise UnreadableFile(f"is larger than {limit // 1024} KiB")
    return content
