"""A tokenizer with a special token that ends nothing, and with an added token that is not special."""

from __future__ import annotations

from transformers import AddedToken, PreTrainedTokenizerFast

from fastflow.demo.small_model import make_tokenizer

PIECES = "abcdefghijklmnopqrstuvwxyz0123456789"
END, TURN, TOOL = "<end>", "<|im_end|>", "<tool>"
END_ID, UNKNOWN_ID, TURN_ID, TOOL_ID = 0, 1, 38, 39


def make_chat_tokenizer(pieces: str = PIECES) -> PreTrainedTokenizerFast:
    """Of 40 tokens: END, one for what is unknown, the pieces, TURN and TOOL."""
    tokenizer = make_tokenizer(list(pieces))
    tokenizer.add_tokens([AddedToken(TURN, special=True), AddedToken(TOOL, special=False)])
    return tokenizer
