"""Prompts: read from files or a Hugging Face dataset, rendered, tokenised, filtered, and served in order."""

from fastflow.data.prompts import tokenize
from fastflow.data.records import Record, is_file, is_gym, read_records
from fastflow.data.stream import PromptStream

__all__ = ["PromptStream", "Record", "is_file", "is_gym", "read_records", "tokenize"]
