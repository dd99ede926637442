"""How a file is written: whole or not at all; and so files that belong together.

Owns the temporary name, the move, and the error for a full disk. Knows no format.
"""

import contextlib
import errno
import os
from pathlib import Path

from worldmodel.errors import StorageError


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    write_files({path: content})


def write_files(contents: dict[Path, bytes]) -> None:
    """Write files that belong together: all of them, in the order given, or none.

    Raises:
        StorageError: the disk is full or a folder cannot be written; the files there before are as they were.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = Path()
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporaries[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(map(len, contents.values())) / 2**20
            raise StorageError(
                f"disk full while writing {path} ({size:.1f} MiB); files already written are whole: free some space "
                "and run the same command again, or choose a folder on another disk"
            ) from error
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
