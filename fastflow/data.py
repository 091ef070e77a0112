"""Prompts: read from JSONL, parquet or a Hugging Face dataset, rendered, tokenised, filtered, and served in order."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastflow.config import DataConfig
from fastflow.errors import FastflowError, need
from fastflow.settings import suggest
from fastflow.trajectory import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Record = tuple[str, dict[str, Any]]  # where it stands, what it holds


def read_records(settings: DataConfig) -> list[Record]:
    """All records with their places, checked for a usable prompt field but not tokenised yet.

    Raises FastflowError naming file and line for missing files, malformed lines and missing or empty prompts.
    """
    path = Path(settings.path)
    if is_file(settings):
        if not path.is_file():
            raise FastflowError(f"data file {path} does not exist; check data.path")
        records = list(_read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path))
    else:
        records = list(_read_dataset(settings))
    records = records[: settings.limit or None]
    if not records:
        raise FastflowError(f"{settings.path} holds no records; data.path needs at least one prompt")
    for place, record in records:
        _check_prompt(place, record, settings)
    return records


def is_file(settings: DataConfig) -> bool:
    """Whether `data.path` names a file rather than a data set."""
    return Path(settings.path).suffix in (".jsonl", ".parquet", ".json")


def tokenize(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> list[Prompt]:
    """Render and tokenise; leaves out prompts over `max_prompt_tokens` and reports how many.

    Raises FastflowError when a chat template is asked for but absent, when nothing is left, or, with
    `data.overlong = error`, for the first prompt that is too long.
    """
    if settings.chat_template and not tokenizer.chat_template:
        raise FastflowError(
            "data.chat_template is on, but the tokenizer has no chat template; use an instruct model or switch it off"
        )
    prompts, dropped = [], []
    for place, record in records:
        text = _render(place, record, tokenizer, settings)
        ids = tokenizer(text, add_special_tokens=not settings.chat_template)["input_ids"]
        if not ids:
            raise FastflowError(
                f"{place}: the prompt {text!r} has no tokens; remove the record or fill data.prompt_field"
            )
        if len(ids) > settings.max_prompt_tokens:
            if settings.overlong == "error":
                raise FastflowError(
                    f"{place}: the prompt has {len(ids)} tokens, over data.max_prompt_tokens = "
                    f"{settings.max_prompt_tokens}; shorten it, raise the limit, or set data.overlong = drop"
                )
            dropped.append((place, len(ids)))
            continue
        prompts.append(Prompt(np.array(ids, dtype=np.int64), text, record, place))
    if not prompts:
        raise FastflowError(
            f"every prompt of {settings.path} is over data.max_prompt_tokens = {settings.max_prompt_tokens} (first: "
            f"{dropped[0][0]} with {dropped[0][1]} tokens); raise the limit or shorten the prompts"
        )
    if dropped:
        logger.warning(
            "dropped %d of %d prompts over data.max_prompt_tokens = %d (first: %s with %d tokens)",
            len(dropped), len(records), settings.max_prompt_tokens, *dropped[0],
        )  # fmt: skip
    return prompts


class PromptStream:
    """Serves prompts for ever, each epoch in an order that (seed, epoch) alone decides, so that it can be resumed."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True):
        self._prompts = list(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch, self._position = 0, 0

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts; runs on into the next epoch."""
        taken = []
        while len(taken) < count:
            order = self._order()
            chosen = order[self._position : self._position + count - len(taken)]
            taken.extend(self._prompts[index] for index in chosen)
            self._position += len(chosen)
            if self._position == len(order):
                self._epoch, self._position = self._epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Where the stream stands, for `load_state` of a stream over the same prompts and seed."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]

    def _order(self) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._prompts))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._prompts))


def _read_jsonl(path: Path) -> Iterator[Record]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FastflowError(f"cannot read {path}: {error}; data.path needs a UTF-8 JSONL file") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FastflowError(
                f"{path}:{number}: not valid JSON ({error.msg}); each line must be one JSON object"
            ) from error
        if not isinstance(record, dict):
            raise FastflowError(f"{path}:{number}: a {type(record).__name__}, but each line must be one JSON object")
        yield f"{path}:{number}", record


def _read_parquet(path: Path) -> Iterator[Record]:
    parquet = need("pyarrow.parquet", extra="data", purpose="reading parquet files")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise FastflowError(f"cannot read {path}: {error}; data.path needs a parquet file") from error
    yield from ((f"{path}:row {number}", row) for number, row in enumerate(rows, start=1))


def _read_dataset(settings: DataConfig) -> Iterable[Record]:
    datasets = need("datasets", extra="data", purpose=f"loading the Hugging Face dataset {settings.path}")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(settings.path, settings.subset, split=settings.split)
    except Exception as error:  # datasets raises dozens of types, network errors among them
        reason = " ".join(str(error).split())[:300]
        raise FastflowError(
            f"cannot load the dataset {settings.path!r} ({reason}); check data.path, data.subset and data.split, or "
            "give a .jsonl or .parquet file"
        ) from error
    return ((f"{settings.path}[{settings.split}] row {number}", dict(row)) for number, row in enumerate(rows, start=1))


def _check_prompt(place: str, record: dict[str, Any], settings: DataConfig) -> None:
    name = settings.prompt_field
    if name not in record:
        raise FastflowError(f"{place}: no field {name!r} (data.prompt_field): {suggest(name, record)}")
    value = record[name]
    if isinstance(value, str):
        if not value.strip():
            raise FastflowError(f"{place}: the prompt is empty; remove the record or fill the field {name!r}")
        return
    is_messages = isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )
    if not is_messages:
        raise FastflowError(
            f"{place}: field {name!r} must be a string or a list of {{role, content}} messages, "
            f"not {type(value).__name__}"
        )
    if not any(message["content"].strip() for message in value):
        raise FastflowError(f"{place}: the prompt is empty; remove the record or fill the field {name!r}")
    if not settings.chat_template:
        raise FastflowError(
            f"{place}: field {name!r} holds chat messages; set data.chat_template = true to render them"
        )


def _render(place: str, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> str:
    value = record[settings.prompt_field]
    if not settings.chat_template:
        return value + settings.suffix
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else [dict(entry) for entry in value]
    if settings.suffix:
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last_user is None:
            raise FastflowError(f"{place}: no user message to append data.suffix to")
        messages[last_user]["content"] += settings.suffix
    if settings.system is not None:
        messages.insert(0, {"role": "system", "content": settings.system})
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is arbitrary jinja, and may raise anything
        raise FastflowError(f"{place}: the chat template refuses this prompt: {error}") from error
