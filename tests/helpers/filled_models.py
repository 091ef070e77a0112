"""What each of two gloo ranks checks of models that are filled from their files, part by part."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import part, whole
from fastflow.models.cut.sharding import shard_models
from fastflow.models.opening import load_models
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.ranks import Ranks
from fastflow.models.self_check import check_head, check_packing
from fastflow.train.digests import digest_of_base, digest_of_start, digest_of_tensors
from small_models import FAMILIES, MIXTURES, VOCABULARY, save_model

LORA = LoraConfig(rank=2)
SHARDED = "in several files"


def write_models(directory: Path) -> None:
    """Every family, tied and not, with biases where it has them; a vocabulary that two ranks share unevenly."""
    for family in FAMILIES:
        for tied in (True, False):
            save_model(directory / f"{family} {tied}", family=family, tied=tied, vocab_size=VOCABULARY + 1)
    save_model(directory / "bfloat16", dtype=torch.bfloat16, tied=False)
    save_sharded(directory)
    for family in MIXTURES:
        save_model(directory / f"{family} in bfloat16", family=family, dtype=torch.bfloat16)
    save_joined(directory)
    (directory / "llama True" / "generation_config.json").write_text('{"eos_token_id": [0, 3], "temperature": 0.5}')


def save_sharded(directory: Path) -> None:
    source = directory / "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    shutil.copytree(source, directory / SHARDED, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(directory / SHARDED, max_shard_size="8KB")
    assert len(list((directory / SHARDED).glob("*.safetensors"))) > 2


def save_joined(directory: Path) -> None:
    """A mixture whose files hold the experts of a layer in one, under the names of the model's parameters."""
    source = directory / "qwen3_5_moe_text False"
    model = AutoModelForCausalLM.from_pretrained(source)
    shutil.copytree(source, directory / "joined", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(model.state_dict(), directory / "joined" / "model.safetensors", {"format": "pt"})


def check_all(directory: Path, ranks: Ranks) -> None:
    for model in sorted(directory.iterdir()):
        check_case(ranks, ModelConfig(path=str(model), device="cpu"), LoraConfig(), proves=model.name.endswith("True"))
    tied, wide = (str(directory / name) for name in ("llama True", "bfloat16"))
    for model in (tied, wide, str(directory / "qwen2 False")):
        check_case(ranks, ModelConfig(path=model, device="cpu", autocast=True), LoraConfig(), proves=model == tied)
    for family in MIXTURES:
        path = str(directory / f"{family} in bfloat16")
        check_case(ranks, ModelConfig(path=path, device="cpu", autocast=True), LoraConfig())
    check_case(ranks, ModelConfig(path=tied, device="cpu"), LORA, proves=True)
    check_case(ranks, ModelConfig(path=str(directory / "qwen3_5_text True"), device="cpu", autocast=True), LORA)
    check_case(ranks, ModelConfig(path=wide, device="cpu", dtype="bfloat16"), LORA)
    check_case(ranks, ModelConfig(path=wide, device="cpu", checkpoint_share=0.5), LoraConfig())
    check_a_file_that_goes(ranks, directory)


def check_case(ranks: Ranks, settings: ModelConfig, lora: LoraConfig, *, proves: bool = False) -> None:
    """Weights, buffers and digests of cut models are those of models that are loaded whole, to the bit. proves: they
    run, too.
    """
    torch.manual_seed(0)
    old = load_models(settings, lora)
    expected = digest_of_base(old[1], old[0])
    torch.manual_seed(0)
    new = load_models(settings, lora, to_be_cut=True)
    pairs = [pair for pair in zip(new, old, strict=True) if isinstance(pair[0], PackedModel)]
    unread = [model.unread for model, _ in pairs]
    assert None not in unread
    starts = [digest_of_start(model) for model, _ in pairs]
    assert all(ranks.gather(starts)[0] == one for one in ranks.gather(starts))
    before = [one.reader.bytes_read for one in unread]
    shard_models(*new, ranks)
    for (model, other), one, first in zip(pairs, unread, before, strict=True):
        assert model.unread is None
        check_same_tensors(model, other)
        check_bytes(model, one, one.reader.bytes_read - first, settings)
        found, theirs = (pair.causal_lm.generation_config.to_dict() for pair in (model, other))
        assert found == theirs
        assert str(model.causal_lm.config.to_dict()) == str(other.causal_lm.config.to_dict())
        if proves:
            check_packing(model, longest=64, name=settings.path)
            check_head(model, longest=64, name=settings.path)
    assert digest_of_base(new[1], new[0]) == expected


def check_same_tensors(model: PackedModel, other: PackedModel) -> None:
    for named in ("named_parameters", "named_buffers"):
        found, expected = (list(getattr(one.model, named)()) for one in (model, other))
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (name, mine), (_, theirs) in zip(found, expected, strict=True):
            assert mine.requires_grad == theirs.requires_grad, name
            assert digest_of_tensors([(name, whole(mine))]) == digest_of_tensors([(name, theirs)]), name
    modules = [(one.model.training, [type(module) for module in one.model.modules()]) for one in (model, other)]
    assert modules[0][0] == modules[1][0]
    ends = model.causal_lm.get_input_embeddings().weight, model.causal_lm.get_output_embeddings().weight
    assert (ends[0] is ends[1]) == model.causal_lm.config.tie_word_embeddings


def check_bytes(model: PackedModel, unread, read: int, settings: ModelConfig) -> None:
    """A rank reads its rows of the files and no others, and twice where it must see whether bfloat16 changes them."""
    widths = {stored.name: stored.dtype.itemsize for stored in unread.places.values()}
    kept = sum(
        part(one).numel() * widths[plain]
        for name, one in model.model.named_parameters()
        if (plain := name.replace("base_model.model.", "").replace(".base_layer", "")) in widths
    )
    total = sum(stored.dtype.itemsize * torch.Size(stored.shape).numel() for stored in unread.places.values())
    assert 0 < kept <= 0.6 * total
    compared = looked_at(model, unread) if isinstance(model, FrozenModel) and settings.autocast else 0
    assert read == kept + compared, (read, kept, compared)


def looked_at(model: PackedModel, unread) -> int:
    """Bytes of the rows that this rank compares with bfloat16."""
    count, rank = model.ranks.count, model.ranks.rank
    found = 0
    for stored in unread.places.values():
        if stored.dtype != torch.bfloat16:
            share = -(-stored.shape[0] // count)
            rows = max(min((rank + 1) * share, stored.shape[0]) - rank * share, 0)
            found += rows * torch.Size(stored.shape[1:]).numel() * stored.dtype.itemsize
    return found


def check_a_file_that_goes(ranks: Ranks, directory: Path) -> None:
    """A file that one rank cannot read any more ends all ranks with a sentence."""
    copy = directory.parent / "going"
    if ranks.is_first:
        shutil.copytree(directory / SHARDED, copy)
    ranks.max(0)
    models = load_models(ModelConfig(path=str(copy), device="cpu"), LORA, to_be_cut=True)
    ranks.max(0)
    if ranks.is_first:
        for file in copy.glob("*.safetensors"):
            file.unlink()
    ranks.max(0)
    try:
        shard_models(*models, ranks)
    except FastflowError as error:
        assert str(error).startswith(f"cannot load the model {copy}: "), error
    else:
        raise AssertionError("weights were read from files that are gone")
