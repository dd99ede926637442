"""An append-only file of records that can be read after the writer was killed at any moment.

Owns: the layout, the lock that tells whether somebody still writes, and where a damaged end begins. Does not know what
the records mean.

Layout: `MAGIC`, then records: length and CRC-32 of the body as two little-endian uint32, then the body: one line of
JSON, and bytes. Each record is handed to the operating system whole before the next one begins, so that only a record
being written can be lost when the process dies.
"""

import contextlib
import errno
import importlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldmodel.errors import DataError, StateError, StorageError


def _find_locks() -> Any:
    """Return the module of file locks; None on a system without."""
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        return None


fcntl = _find_locks()

MAGIC = b"worldmodel-journal 1\n"
HEAD = struct.Struct("<II")
MOST_BYTES = 1 << 30
QUIET_S = 60.0
"""Where files cannot be locked, a journal that nobody wrote to for so long is taken as left behind."""


class Journal:
    """A journal open for writing, locked as long as this process lives.

    Args:
        path: of a file that does not exist yet; missing folders are made.

    Raises:
        StorageError: the file exists or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self._descriptor = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            if fcntl is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(MAGIC)
        except OSError as error:
            self.close()
            raise _storage_error(path, error) from error

    def append(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Add a record.

        Args:
            header: JSON values.
            payload: any bytes.

        Raises:
            StorageError: the disk is full; what was added before stays readable, and nothing more can be added.
            StateError: the journal is closed.
        """
        if self._descriptor < 0:
            raise StateError(f"{self.path} is closed: begin another journal")
        body = json.dumps(header, separators=(",", ":")).encode() + b"\n" + payload
        try:
            self._write(HEAD.pack(len(body), zlib.crc32(body)) + body)
        except OSError as error:
            # What was begun is cut off, so that the file ends with a whole record.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.num_bytes)
            self.close()
            raise _storage_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.num_bytes += len(content)


def read_journal(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the records of a journal, header and payload, up to its end or to where it is damaged.

    Raises:
        DataError: the file is gone or is no journal.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path} is no journal of a session: delete it")
            while len(head := file.read(HEAD.size)) == HEAD.size:
                length, crc = HEAD.unpack(head)
                body = file.read(length) if length <= MOST_BYTES else b""
                if len(body) != length or zlib.crc32(body) != crc:
                    return
                line, _, payload = body.partition(b"\n")
                yield json.loads(line), payload
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def is_being_written(path: Path) -> bool:
    """Return whether the process that writes a journal is alive."""
    if fcntl is None:
        return time.time() - path.stat().st_mtime < QUIET_S
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"disk full while writing {path}: what was written stays readable; free some space")
    return StorageError(f"cannot write {path}: {error.strerror or error}; choose another folder")
