"""What a model's files say is read before its weights: quantisation, pickles, ties; each refusal is one sentence."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastflow import cli
from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.opening import load_models
from fastflow.models.weights.files import check_files, check_quantisation, check_tie, check_tokenizer_files
from fastflow.models.weights.loading import load_causal_lm, read_config
from small_models import make_causal_lm, save_model


@pytest.fixture(scope="module")
def fine(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "fine")


@pytest.fixture
def model(fine, tmp_path):
    return shutil.copytree(fine, tmp_path / "model")


def change_config(directory, **entries) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def settings_for(directory) -> ModelConfig:
    return ModelConfig(path=str(directory), device="cpu")


def train(tmp_path, capsys, *options, **settings) -> tuple[int, str]:
    """Exit code and stderr of `fastflow train`."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "ab"}\n')
    given = {"model.device": "cpu", "data.path": prompts, "run.output": tmp_path / "run", "run.steps": 1, **settings}
    capsys.readouterr()
    code = cli.main(["train", *options, *(f"--{name}={value}" for name, value in given.items())])
    return code, capsys.readouterr().err


QUANTISED = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_method": "not-yet-invented"}, "not-yet-invented"),
    ({"bits": 3}, "of an unnamed method"),
]


class TestQuantisedWeights:
    @pytest.mark.parametrize(("entry", "method"), QUANTISED)
    def test_are_refused_by_name_before_any_package_is_asked_for(self, model, entry, method):
        change_config(model, quantization_config=entry)
        with pytest.raises(FastflowError, match=r"holds quantised weights \(.*neither trained nor scored") as refusal:
            read_config(str(model), trust_remote_code=False)
        assert f"({method}, the quantization_config" in str(refusal.value)

    def test_are_refused_where_the_configuration_comes_from_a_hub(self):
        with pytest.raises(FastflowError, match="some/model holds quantised weights"):
            check_quantisation("some/model", QUANTISED[0][0])

    @pytest.mark.parametrize("dry", [False, True])
    @pytest.mark.parametrize("role", ["model.path", "model.base"])
    def test_stop_a_run(self, model, fine, tmp_path, capsys, role, dry):
        change_config(model, quantization_config=QUANTISED[0][0])
        models = {"model.path": fine, role: model}
        code, error = train(tmp_path, capsys, *(["--dry-run"] if dry else []), **models)
        assert code == 2
        assert error.count("\n") == 1
        assert str(model) in error
        assert "gptq" in error

    def test_stop_a_plan(self, model, capsys):
        change_config(model, quantization_config=QUANTISED[0][0])
        assert cli.main(["plan", f"--model.path={model}"]) == 2
        assert "gptq" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["q_proj.qweight", "q_proj.weight_scale_inv", "q_proj.weight.absmax"])
    def test_are_known_by_their_names_where_the_configuration_says_nothing(self, model, name):
        save_file({f"model.layers.0.self_attn.{name}": torch.zeros(1)}, model / "model.safetensors")
        with pytest.raises(FastflowError, match=f"holds quantised weights .*{name}"):
            check_files(str(model))

    @pytest.mark.parametrize("nothing", [None, {}])
    def test_an_empty_entry_is_none(self, model, nothing):
        change_config(model, quantization_config=nothing)
        read_config(str(model), trust_remote_code=False)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"max_position_embeddings": "many"}, "expected int, got str"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"tie_word_embeddings": "yes"}, "expected bool, got str"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "TypeError"),
        ({"rope_parameters": {"rope_type": "su", "factor": 2.0}}, "'su', which transformers does not know; it knows"),
        ({"layer_types": ["sliding_attention"] * 2}, "layers of sliding attention and no sliding_window"),
        ({"quantization_config": "gptq"}, "quantised weights (gptq"),
        ({"quantization_config": [1]}, "quantised weights (of an unnamed method"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence(model, tmp_path, capsys, entries, words):
    change_config(model, **entries)
    code, error = train(tmp_path, capsys, **{"model.path": model})
    assert code == 2
    assert error.count("\n") == 1
    assert str(model) in error
    assert words in error


class TestPickles:
    @pytest.fixture
    def pickled(self, model):
        (model / "model.safetensors").unlink()
        torch.save(make_causal_lm().state_dict(), model / "pytorch_model.bin")
        return model

    def test_are_refused_with_the_command_that_converts_them(self, pickled, tmp_path):
        """The command is carried out as a user would, in a shell."""
        awkward = pickled.rename(tmp_path / "it's a model")
        with pytest.raises(FastflowError, match=r"its weights are pickles \(pytorch_model\.bin\)") as refusal:
            check_files(str(awkward))
        words = shlex.split(str(refusal.value).partition("convert them with ")[2])
        assert words[:2] == ["python", "-c"]
        subprocess.run([sys.executable, *words[1:]], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        loaded = load_causal_lm(str(awkward), settings_for(awkward)).state_dict()
        for name, weight in make_causal_lm().state_dict().items():
            assert torch.equal(loaded[name], weight)

    def test_in_shards_too(self, pickled):
        (pickled / "pytorch_model.bin").rename(pickled / "pytorch_model-00001-of-00002.bin")
        with pytest.raises(FastflowError, match="pickles"):
            check_files(str(pickled))

    def test_beside_safetensors_do_not_matter(self, pickled, fine):
        shutil.copy(fine / "model.safetensors", pickled)
        load_causal_lm(str(pickled), settings_for(pickled))

    def test_stop_a_dry_run(self, pickled, tmp_path, capsys):
        code, error = train(tmp_path, capsys, "--dry-run", **{"model.path": pickled})
        assert code == 2
        assert "pickles" in error


class TestTies:
    @staticmethod
    def rewrite(directory, change) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", {"format": "pt"})

    def add_head(self, directory, factor: float) -> None:
        self.rewrite(directory, lambda weights: weights.update(
            {"lm_head.weight": weights["model.embed_tokens.weight"].clone() * factor}
        ))  # fmt: skip

    def test_a_tied_flag_over_another_head_is_named(self, model):
        self.add_head(model, 2.0)
        with pytest.raises(FastflowError, match=r"tie_word_embeddings = true, but .* lm_head\.weight that differs"):
            load_causal_lm(str(model), settings_for(model))

    def test_a_tied_flag_over_a_copy_is_fine(self, model):
        self.add_head(model, 1.0)
        load_causal_lm(str(model), settings_for(model))

    def test_a_hubs_model_is_looked_for_in_the_cache(self, model, monkeypatch):
        self.add_head(model, 2.0)
        monkeypatch.setattr("transformers.utils.cached_file", lambda path, name, **_: str(model / name))
        with pytest.raises(FastflowError, match="some/model says tie_word_embeddings = true"):
            check_tie("some/model", make_causal_lm().config, ())

    def test_a_hub_without_a_cache_is_not_looked_into(self, monkeypatch):
        monkeypatch.setattr("transformers.utils.cached_file", lambda *_, **__: None)
        check_tie("some/model", make_causal_lm().config, ())

    def test_a_head_of_another_size_is_named(self, model):
        self.rewrite(model, lambda weights: weights.update({"lm_head.weight": torch.zeros(48, 32)}))
        with pytest.raises(FastflowError, match=str(model)):
            load_causal_lm(str(model), settings_for(model))

    def test_an_untied_flag_without_a_head_is_named(self, model):
        change_config(model, tie_word_embeddings=False)
        with pytest.raises(
            FastflowError, match=r"tie_word_embeddings = false, but its weights have no lm_head\.weight"
        ):
            load_causal_lm(str(model), settings_for(model))

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("shards", [1, 4])
    def test_what_transformers_saves_is_fine(self, tmp_path, tied, shards):
        whole = make_causal_lm(tied=tied)
        size = sum(weight.numel() * 4 for weight in whole.state_dict().values())
        whole.save_pretrained(tmp_path / "model", max_shard_size=size // shards + 1)
        load_causal_lm(str(tmp_path / "model"), settings_for(tmp_path / "model"))

    def test_in_shards_the_head_is_found(self, tmp_path):
        make_causal_lm(tied=False).save_pretrained(tmp_path / "model", max_shard_size=8000)
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
        change_config(tmp_path / "model", tie_word_embeddings=True)
        with pytest.raises(FastflowError, match="lm_head"):
            load_causal_lm(str(tmp_path / "model"), settings_for(tmp_path / "model"))


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"final_logit_softcapping": 30.0}, "caps the logits (final_logit_softcapping = 30.0)"),
        ({"attn_logit_softcapping": 50.0}, "caps the attention scores (attn_logit_softcapping = 50.0)"),
        ({"use_bidirectional_attention": True}, "attend to later ones (use_bidirectional_attention = true)"),
    ],
)
def test_what_gemma_can_be_told_to_compute_is_refused(model, entry, words, trusted):
    change_config(model, model_type="gemma3_text")
    read_config(str(model), trust_remote_code=trusted)
    change_config(model, **entry)
    with pytest.raises(FastflowError, match=re.escape(words)):
        read_config(str(model), trust_remote_code=trusted)


def test_a_model_that_reads_images_names_those_of_text_alone(model):
    change_config(model, model_type="gemma3")
    with pytest.raises(FastflowError, match=r"family 'gemma3'; .* take a model of text alone, .* gemma3_text"):
        read_config(str(model), trust_remote_code=False)


def test_the_base_is_looked_at_before_the_policys_weights_load(model, fine, monkeypatch):
    change_config(model, quantization_config=QUANTISED[0][0])
    monkeypatch.setattr("fastflow.models.opening.load_causal_lm", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(FastflowError, match="gptq"):
        load_models(ModelConfig(path=str(fine), base=str(model), device="cpu"), LoraConfig())


class TestAnotherDirectory:
    """Of a run, in place of its policy's: the message names that one."""

    @pytest.fixture
    def run(self, model, tmp_path):
        for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-30"):
            shutil.copytree(model, place / "policy")
            (place / "adapter").mkdir()
        return tmp_path / "run"

    @pytest.mark.parametrize("read", [lambda path: read_config(path, trust_remote_code=False), check_tokenizer_files])
    @pytest.mark.parametrize(
        ("given", "right"),
        [
            ("", "policy"),
            ("adapter", "policy"),
            ("checkpoints", "policy"),
            ("checkpoints/step-30", "checkpoints/step-30/policy"),
            ("checkpoints/step-30/adapter", "checkpoints/step-30/policy"),
        ],
    )
    def test_of_a_run(self, run, read, given, right):
        with pytest.raises(FastflowError) as caught:
            read(str(run / given))
        assert f"has no config.json; give {run / right}, which" in str(caught.value)

    def test_of_nothing_that_is_known(self, tmp_path):
        with pytest.raises(FastflowError, match=r"has no config\.json; check the path"):
            read_config(str(tmp_path), trust_remote_code=False)
