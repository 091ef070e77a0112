"""The encoder of sentence embeddings: its vectors, its key, and what it needs."""

import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fastflow.errors import FastflowError
from fastflow.evaluate.creative.embedding import identity, load_encoder


def test_the_mean_over_a_texts_own_tokens(encoder):
    texts = ["1+2=3", "", "40", "1" * 200, "40"]
    found = load_encoder(str(encoder), torch.device("cpu"))
    vectors = found.encode(texts)
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
        expected = torch.zeros(16)
        if ids.numel():
            with torch.no_grad():
                expected = model(input_ids=ids.long()).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
    assert "mean pooling" in found.description and str(encoder) in found.description
    np.testing.assert_array_equal(vectors[2], vectors[4])


def test_another_encoder_is_another_key(encoder, tmp_path):
    copy = shutil.copytree(encoder, tmp_path / "copy")
    before = identity(str(copy))
    (copy / "model.safetensors").write_bytes(b"x")
    assert identity(str(copy)) != before
    assert identity("some/model") == "some/model"


def test_a_directory_of_sentence_transformers_pools_as_it_says(encoder, tmp_path):
    package = pytest.importorskip("sentence_transformers")

    body = package.models.Transformer(str(encoder), max_seq_length=32)
    pooling = package.models.Pooling(body.get_word_embedding_dimension(), pooling_mode="mean")
    package.SentenceTransformer(modules=[body, pooling], device="cpu").save(str(tmp_path / "model"))
    found = load_encoder(str(tmp_path / "model"), torch.device("cpu"))
    texts = ["1+2=3", "40"]
    plain = load_encoder(str(encoder), torch.device("cpu"))
    np.testing.assert_allclose(found.encode(texts), plain.encode(texts), atol=1e-5)
    assert found.description == f"{tmp_path / 'model'} (sentence-transformers, first 32 tokens)"


def test_other_names_need_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "modules.json").write_text("[]")
    for name in ("some/model", str(tmp_path)):
        with pytest.raises(FastflowError, match=r"fastflow\[creative\]"):
            load_encoder(name, torch.device("cpu"))
