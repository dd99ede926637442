"""How a file is written: whole or not at all.

Owns the temporary name, the move, and the error for a full disk. Knows no format.
"""

import errno
import os
from pathlib import Path

from worldmodel.errors import StorageError


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"disk full while writing {path} ({len(content) / 2**20:.1f} MiB); files already written are whole: "
                "free some space and run the same command again, or choose a folder on another disk"
            ) from error
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
