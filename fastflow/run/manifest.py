"""What a save consists of: the size and SHA-256 of every file, written last, so that damage of any kind is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastflow.counted import counted
from fastflow.models.pulse import PULSE

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 2**22  # bytes
_THREADS = min(8, os.cpu_count() or 1)  # hashing lets other threads run


class Damaged(Exception):
    """A save is not what its manifest says; the message says where."""


@dataclass(frozen=True)
class Manifest:
    """step, updates: whole steps and optimiser updates that were done. metric: that chooses the best save, where there
    is one. files: path in the save -> bytes and SHA-256 of each. format: of the whole save.
    """

    step: int
    updates: int
    metric: float | None = None
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    format: int = FORMAT


def write_manifest(directory: Path, *, step: int, updates: int, metric: float | None) -> Manifest:
    """Describe all files of a save that is complete but for this one. Raises OSError."""
    names = sorted(name for name in _files(directory) if name != MANIFEST)
    with ThreadPoolExecutor(_THREADS) as threads:
        files = dict(zip(names, threads.map(lambda name: _fingerprint(directory / name), names), strict=True))
    manifest = Manifest(step, updates, metric, files)
    content = asdict(manifest)
    text = json.dumps({**content, "sha256": _digest_of(content)}, indent=1)
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, proved against its own digest. Raises Damaged."""
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        proof = content.pop("sha256")
        if content["format"] != FORMAT:
            raise Damaged(f"it has format {content['format']}, and this fastflow reads format {FORMAT}")
        if proof != _digest_of(content):
            raise Damaged(f"{MANIFEST} has changed since it was written")
        return Manifest(**{**content, "files": {name: tuple(entry) for name, entry in content["files"].items()}})
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is no manifest") from error


def verify(directory: Path) -> Manifest:
    """Prove that every file of a save is the one that was written. Raises Damaged for the first that is not."""
    manifest = read_manifest(directory)

    def check(name: str) -> None:
        size, digest = manifest.files[name]
        try:
            found = (directory / name).stat().st_size
            if found != size:
                raise Damaged(f"{name} has {counted(found, 'byte')}, not {size}")
            if _fingerprint(directory / name)[1] != digest:
                raise Damaged(f"{name} is not what was written (its SHA-256 differs)")
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(check, manifest.files))
    return manifest


def _files(directory: Path) -> Iterator[str]:
    for parent, _, files in os.walk(directory):
        yield from (str(Path(parent, name).relative_to(directory)) for name in files)


def _fingerprint(path: Path) -> tuple[int, str]:
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            size += count
            PULSE.work()
    return size, digest.hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
