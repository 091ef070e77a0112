"""Policy and base must mean the same by every token id."""

from __future__ import annotations

import contextlib
from unittest.mock import Mock

import pytest
from transformers import AddedToken

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError
from fastflow.models.opening import load_models
from fastflow.models.vocabulary import check_same_tokens, check_tokenizer_fits
from small_models import make_causal_lm, save_model
from special_tokens import PIECES, make_chat_tokenizer


@pytest.fixture
def pair(tmp_path):
    """Settings for two directories that hold these tokenizers; None leaves the directory without one."""

    def make(policy, base) -> ModelConfig:
        for name, tokenizer in (("policy", policy), ("base", base)):
            (tmp_path / name).mkdir()
            if tokenizer is not None:
                tokenizer.save_pretrained(tmp_path / name)
        return ModelConfig(path=str(tmp_path / "policy"), base=str(tmp_path / "base"), device="cpu")

    return make


def with_added(*tokens: AddedToken):
    tokenizer = make_tokenizer(list(PIECES))
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_permuted_ids_are_refused_naming_the_first(pair):
    settings = pair(make_tokenizer(list(PIECES)), make_tokenizer(list("abdc" + PIECES[4:])))
    with pytest.raises(FastflowError, match=r"token 4 is 'c' in .*policy, and is 'd' in .*base.*of the same family"):
        check_same_tokens(settings)


def test_models_with_permuted_ids_are_not_loaded(tmp_path):
    policy, base = (save_model(tmp_path / name, pieces=pieces) for name, pieces in (("p", PIECES), ("b", PIECES[::-1])))
    with pytest.raises(FastflowError, match="token 2 is 'a'"):
        load_models(ModelConfig(path=str(policy), base=str(base), device="cpu"), LoraConfig())


@pytest.mark.parametrize(
    "theirs",
    [
        (),  # the base does not know the token
        (AddedToken("<|other|>", special=True), AddedToken("<tool>")),
        (AddedToken("<tool>"), AddedToken("<|im_end|>", special=True)),  # the other way round
    ],
)
def test_added_tokens_count(pair, theirs):
    with pytest.raises(FastflowError, match=r"token 38 is '<\|im_end\|>' in .*policy, and is "):
        check_same_tokens(pair(make_chat_tokenizer(), with_added(*theirs)))


def test_a_token_of_the_base_alone_is_a_warning(pair, caplog):
    check_same_tokens(pair(with_added(AddedToken("<|im_end|>", special=True)), make_chat_tokenizer()))
    assert "knows 1 token that the policy's does not (first: 39, '<tool>')" in caplog.text


def test_templates_and_roles_may_differ(pair, caplog):
    other = make_chat_tokenizer()
    other.chat_template = "{{ messages }}"
    other.eos_token = "<|im_end|>"
    other.padding_side = "left"
    check_same_tokens(pair(make_chat_tokenizer(), other))
    assert not caplog.messages


@pytest.mark.parametrize("without", ["policy", "base"])
def test_a_directory_without_a_tokenizer_is_a_warning(pair, without, caplog):
    tokenizers = {"policy": make_chat_tokenizer(), "base": make_chat_tokenizer(), without: None}
    settings = pair(**tokenizers)
    make_causal_lm().save_pretrained(settings.base)
    check_same_tokens(settings)
    assert "could not be compared" in caplog.text
    assert "no tokenizer file" in caplog.text


def test_a_damaged_tokenizer_is_a_warning(pair, caplog):
    settings = pair(make_chat_tokenizer(), make_chat_tokenizer())
    with open(f"{settings.base}/tokenizer.json", "w") as file:
        file.write("{")
    check_same_tokens(settings)
    assert "could not be compared" in caplog.text


def test_the_same_directory_and_no_base_ask_for_nothing(tmp_path):
    check_same_tokens(ModelConfig(path=str(tmp_path / "none")))
    check_same_tokens(ModelConfig(path=str(tmp_path / "none"), base=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("name", "token", "fits"),
    [
        (None, AddedToken("<image_soft_token>", special=True), True),  # as Gemma 3 of text alone
        (None, AddedToken("<tool>", special=False), False),
        ("eos_token", AddedToken("<|im_end|>", special=True), False),
        ("pad_token", AddedToken("<pad>", special=True), False),
    ],
)
def test_a_special_token_may_have_no_row_in_the_head(name, token, fits):
    tokenizer = with_added(token)
    if name is not None:
        setattr(tokenizer, name, str(token))
    check_tokenizer_fits(tokenizer, Mock(vocab_size=len(tokenizer)), ModelConfig(path="it"))
    refusal = contextlib.nullcontext() if fits else pytest.raises(FastflowError, match="38 rows; they do not belong")
    with refusal:
        check_tokenizer_fits(tokenizer, Mock(vocab_size=len(tokenizer) - 1), ModelConfig(path="it"))
