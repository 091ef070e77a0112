"""Reads records from JSON, CSV, parquet, a Hugging Face dataset or a program, each with the place where it stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastflow.config.program import NO_PROGRAM, PROMPTS, Program
from fastflow.config.schema import DataConfig
from fastflow.config.sections import GYM
from fastflow.counted import counted
from fastflow.data.conversation import ends_with_answer, prompt_of
from fastflow.data.csv_file import read_csv
from fastflow.data.given import read_given
from fastflow.data.gym import read_gym
from fastflow.data.json_file import check_values, read_json
from fastflow.errors import FastflowError, message_of, need

logger = logging.getLogger(__name__)

Record = tuple[str, dict[str, Any]]  # its place, its fields

JSON = (".jsonl", ".json", ".ndjson")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def read_records(settings: DataConfig, program: Program = NO_PROGRAM) -> list[Record]:
    """Read all records with their places, and check each for a usable prompt field. Does not tokenise them.

    program: has them where `data.path` says so.

    Reports how many prompts end with an assistant turn, and what happens to it. Raises FastflowError, with file and
    line, for missing files, malformed lines and missing or empty prompts.
    """
    records = list(_read(settings, program))
    records = records[: settings.limit or None]
    if not records:
        raise FastflowError(f"{settings.path} holds no records; give data.path at least one prompt")
    for place, record in records:
        prompt_of(place, record, settings)
    _report_answers(records, settings)
    return records


def _read(settings: DataConfig, program: Program) -> Iterable[Record]:
    if (prompts := program.thing(PROMPTS, settings.path)) is not None:
        return read_given(prompts, settings.prompt_field)
    if is_gym(settings):
        return read_gym(settings.path, settings.prompt_field, settings.gym, settings.suffix, settings.limit)
    return _read_file(Path(settings.path)) if is_file(settings) else _read_dataset(settings)


def is_gym(settings: DataConfig) -> bool:
    """Whether `data.path` names data sets of reasoning-gym."""
    return settings.path.startswith(GYM)


def is_file(settings: DataConfig) -> bool:
    """Whether `data.path` names a file rather than a data set."""
    path = Path(settings.path)
    return _ending(path) in (*JSON, ".csv", ".parquet") or os.path.isfile(path)


def _ending(path: Path) -> str:
    """Return the ending in small letters, without that of a compression."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] and endings[-1] in COMPRESSED:
        endings.pop()
    return endings[-1] if endings else ""


def _read_file(path: Path) -> Iterable[Record]:
    if os.path.isdir(path):  # as os.path sees it, a name that is too long does not exist
        raise FastflowError(f"data.path = {path} is a directory; name the file in it")
    if not os.path.exists(path):
        raise FastflowError(f"data file {path} does not exist; check data.path")
    if not path.is_file():
        raise FastflowError(f"data.path = {path} is a pipe or a device, which cannot be read twice; write it to a file")
    ending = _ending(path)
    if ending == ".parquet":
        return _read_parquet(path)
    if ending in JSON:
        return read_json(path)
    if ending == ".csv":
        return read_csv(path)
    raise FastflowError(
        f"{path} ends in {ending or 'nothing'!r}, but fastflow reads {', '.join(JSON)}, .csv and .parquet; convert it, "
        "or give a directory that the datasets package can load"
    )


def _read_parquet(path: Path) -> Iterator[Record]:
    parquet = need("pyarrow.parquet", extra="data", purpose="reading parquet files")
    arrow = need("pyarrow", extra="data", purpose="reading parquet files")
    try:
        names = parquet.read_schema(path).names
        rows = parquet.read_table(path).to_pylist() if len({*names}) == len(names) else []
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:  # times beyond Python's overflow
        raise FastflowError(f"cannot read {path}: {error}; data.path needs a parquet file") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FastflowError(f"{path} has more than one column {twice[0]!r}; rename or remove one")
    for number, row in enumerate(rows, start=1):
        check_values(f"{path}:row {number}", row)
        yield f"{path}:row {number}", row


def _read_dataset(settings: DataConfig) -> Iterable[Record]:
    datasets = need("datasets", extra="data", purpose=f"loading the Hugging Face dataset {settings.path}")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(settings.path, settings.subset, split=settings.split)
    except Exception as error:  # datasets raises dozens of types, network errors among them
        raise FastflowError(
            f"cannot load the dataset {settings.path!r} ({message_of(error)}); check data.path, data.subset and "
            "data.split, or give a .jsonl or .parquet file"
        ) from error
    return ((f"{settings.path}[{settings.split}] row {number}", dict(row)) for number, row in enumerate(rows, start=1))


def _report_answers(records: list[Record], settings: DataConfig) -> None:
    places = [place for place, record in records if ends_with_answer(record[settings.prompt_field])]
    if places:
        done = {"drop": "left out of", "continue": "to be continued in"}[settings.final_assistant]
        logger.warning(
            "data.final_assistant = %s: the assistant turn at the end is %s %d of %s (first: %s)",
            settings.final_assistant, done, len(places), counted(len(records), "prompt"), places[0],
        )  # fmt: skip
