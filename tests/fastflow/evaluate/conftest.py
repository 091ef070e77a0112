"""A base of the demo's sums, pretrained for seconds, with held-out sums as a task; a tiny encoder."""

import json

import pytest

from fastflow.demo import command as demo
from fastflow.demo.tasks import SUMS

HELD_OUT = 12


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """(directory of the base, JSONL of held-out sums with prompt and answer, the held-out pairs)."""
    import dataclasses

    import torch
    from rich.console import Console

    directory = tmp_path_factory.mktemp("sums")
    task = dataclasses.replace(SUMS, pretraining_steps=300)
    topics, held_out = task.topics(0, HELD_OUT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        demo.make_base(task, topics, directory / "base", seed=0, console=Console(quiet=True))
    finally:
        torch.set_num_threads(threads)
    lines = [{"prompt": task.prompt(pair), "answer": str(sum(pair))} for pair in held_out]
    (directory / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory / "base", directory / "held_out.jsonl", held_out


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A directory with a tiny BERT; read only."""
    import torch
    from transformers import BertConfig, BertModel

    from fastflow.demo.small_model import make_tokenizer

    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = make_tokenizer(list("0123456789+=- .\\boxed{}"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
