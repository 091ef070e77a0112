"""Reads the text of a data file, compressed or not. One sentence says what is wrong with its bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path

from fastflow.errors import FastflowError

READ = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
REFUSED = {
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it first (zstd -d)",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"PAR1": "is a parquet file; give it the ending .parquet",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_text(path: Path) -> str:
    """Read a file, decompress gzip, bzip2 and xz whatever its name is, and leave out a byte-order mark.

    Raises FastflowError for a file that cannot be read, is damaged, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FastflowError(f"cannot read {path}: {error.strerror}; check data.path") from error
    content = _decompressed(path, content).removeprefix(BYTE_ORDER_MARK)
    for mark, words in REFUSED.items():
        if content.startswith(mark):
            raise FastflowError(f"{path} {words}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FastflowError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _decompressed(path: Path, content: bytes) -> bytes:
    for mark, decompress in READ.items():
        if content.startswith(mark):
            try:
                return decompress(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise FastflowError(f"cannot decompress {path}: {error}; the file is damaged, copy it again") from error
    return content
