"""Mistakes in data and models: exit code 2 and one line that names cause and remedy."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AddedToken

from command_line import check_refused, invoke, write
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import named_paths
from fastflow.models.weights.loading import FAMILIES
from small_models import VOCABULARY, make_causal_lm


class TestData:
    def test_a_missing_file(self, train, tmp_path):
        check_refused(train(data__path=tmp_path / "absent.jsonl"), tmp_path / "absent.jsonl", "check data.path")

    def test_a_preset_with_a_file_of_its_own(self, capsys, tmp_path):
        file = write(tmp_path / "bad.jsonl", {"prompt": "ab"}, '{"prompt": "c', {"prompt": "d"})
        outcome = invoke(capsys, "train", "--preset", "demo", "--data.path", file, "--run.output", tmp_path / "run")
        check_refused(outcome, f"{file}:2: not valid JSON", "one JSON object")

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ({"prompt": " "}, ("the prompt is empty", "remove the record")),
            ({"text": "a"}, ("data.prompt_field", "text")),
            ([1], ("a list", "one JSON object")),
            ({"prompt": [{"role": "user", "content": "a"}]}, ("data.chat_template = true",)),
        ],
    )
    def test_a_bad_record(self, train, tmp_path, line, words):
        file = write(tmp_path / "bad.jsonl", {"prompt": "ab"}, "", line)
        check_refused(train(data__path=file), f"{file}:3: ", *words)

    def test_every_prompt_too_long(self, train):
        outcome = train(data__max_prompt_tokens=1, data__suffix="a")
        check_refused(outcome, "prompts.jsonl:1 with 3 tokens", "data.max_prompt_tokens = 1", "raise the limit")

    def test_one_prompt_too_long_where_that_is_an_error(self, train):
        outcome = train(data__max_prompt_tokens=2, data__overlong="error")
        check_refused(outcome, "prompts.jsonl:2: the prompt has 3 tokens", "data.overlong = drop")

    def test_a_chat_template_that_is_not_there(self, train):
        check_refused(train(data__chat_template="true"), "no chat template", "instruct model")

    def test_a_prompt_that_leaves_no_room_in_the_context(self, train):
        check_refused(
            train(rollout__max_response_tokens=127), "context of 128", "rollout.max_response_tokens", "prompts.jsonl:"
        )

    def test_a_response_alone_that_leaves_no_room(self, train):
        outcome = train(rollout__max_response_tokens=600)
        check_refused(outcome, "context of 128", "lower rollout.max_response_tokens")
        assert "data.max_prompt_tokens" not in outcome[2]  # which cannot help


class TestModels:
    def test_a_missing_directory(self, train, tmp_path):
        check_refused(train(model__path=tmp_path / "absent"), f"model directory {tmp_path / 'absent'} does not exist")

    def test_a_directory_without_a_model(self, train, tmp_path):
        (tmp_path / "empty").mkdir()
        check_refused(train(model__path=tmp_path / "empty"), "cannot load", tmp_path / "empty", "check the path")

    def test_a_mistyped_directory_that_may_be_a_hub_id(self, train, models, tmp_path, monkeypatch):
        monkeypatch.chdir(models.parent)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        path = f"{models.name}/fime"
        code, out, err = train(model__path=path)
        assert code == 2 and logging.getLogger("huggingface_hub").handlers == []  # it would say the same once more
        assert f"cannot load the tokenizer {path}: {path} is no directory here, and as a hub id it fails: " in err
        assert f"did you mean {models.name}/fine?" in " ".join(out.split())

    def test_a_hub_that_cannot_be_reached_is_asked_once(self, train, monkeypatch):
        asked = []

        def model_info(self, name, timeout):
            asked.append(name)
            raise ConnectionError("no route to host")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        outcome = train(model__path="someone/a-model")
        check_refused(outcome, "someone/a-model is no directory here", "cannot be reached", "no route to host")
        assert asked == ["someone/a-model"]

    def test_a_missing_base(self, train, tmp_path):
        check_refused(train(model__base=tmp_path / "absent"), f"model directory {tmp_path / 'absent'} does not exist")

    def test_vocabularies_that_differ(self, train, models):
        outcome = train(model__base=models / "larger")
        check_refused(outcome, "different vocabularies", VOCABULARY, VOCABULARY + 8, "model.base of the same family")

    def test_a_tokenizer_larger_than_the_head(self, train, models):
        outcome = train(model__path=models / "large-tokenizer")
        check_refused(outcome, "43 tokens", f"{VOCABULARY} rows", "check model.path")

    @pytest.fixture
    def changed(self, models, tmp_path):
        """A function that copies the fine model with other entries in its config.json, and returns the copy."""

        def change(**entries):
            copy = shutil.copytree(models / "fine", tmp_path / "changed")
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps({**config, **entries}))
            return copy

        return change

    def test_an_unsupported_family(self, train, changed):
        check_refused(train(model__path=changed(model_type="gpt2")), "'gpt2'", ", ".join(FAMILIES))

    @pytest.mark.parametrize("left", [0, 3, 20_000])
    def test_a_weights_file_that_is_cut_short(self, train, changed, left):
        model = changed()
        file = model / "model.safetensors"
        assert file.stat().st_size > 20_000
        file.write_bytes(file.read_bytes()[:left])
        outcome = train(model__path=model)
        check_refused(
            outcome, f"cannot load the model {model}", f"{file} is damaged or incomplete: download or copy it"
        )

    def test_a_special_token_without_a_row(self, train, changed, tmp_path):
        """Gemma's text models have no row for <image_soft_token>."""
        tokens = [AddedToken(f"<{name}>", special=True) for name in ("a", "b", "image_soft_token")]
        model, tokenizer = changed(), make_tokenizer(list("abcdefghijklmnopqrstuvwxyz0123456789"))
        tokenizer.add_tokens(tokens)
        assert len(tokenizer) == VOCABULARY + 1
        tokenizer.save_pretrained(model)
        file = write(tmp_path / "image.jsonl", {"prompt": "ab"}, {"prompt": "a<image_soft_token>b"})
        outcome = train(model__path=model, data__path=file)
        check_refused(outcome, f"{file}:2 holds token {VOCABULARY}", "spells a special token", "remove it")

    def test_weights_of_another_shape(self, train, changed):
        model = changed(intermediate_size=64)
        outcome = train(model__path=model)
        check_refused(
            outcome, f"cannot load the model {model}: 6 weights", "(first: model.layers.0.mlp.down_proj.weight, ("
        )
        check_refused(outcome, " instead of (32, 64)); check that both belong together")

    def test_weights_that_are_missing_are_not_made_up(self, train, changed):
        """transformers would fill the third layer with random numbers and warn."""
        model = changed(num_hidden_layers=3)
        check_refused(train(model__path=model), str(model), "model.layers.2.")

    def test_pickled_weights_are_not_read(self, train, changed):
        model = changed()
        (model / "model.safetensors").unlink()
        torch.save(make_causal_lm().state_dict(), model / "pytorch_model.bin")
        check_refused(train(model__path=model), f"cannot load the model {model}", "safetensors")

    def test_damaged_weights(self, train, models):
        check_refused(train(model__path=models / "damaged"), "NaN", "weights are damaged")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_where_there_is_none(self, train):
        check_refused(train(model__device="cuda"), "no CUDA device", "--model.device cpu")

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "xpu"])
    def test_a_device_that_does_not_exist(self, train, device):
        check_refused(train(model__device=device), f"model.device = '{device}'", "auto, cpu, cuda")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    @pytest.mark.parametrize("kernel", ["varlen", "flash_attn"])
    def test_attention_that_needs_cuda(self, train, kernel):
        check_refused(train(model__attention=kernel), f"model.attention = {kernel}", "auto or sdpa")


def test_half_of_torchruns_environment_is_refused(train, monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_refused(train(), "WORLD_SIZE is 2, but RANK is not set", "torchrun")
    monkeypatch.setenv("WORLD_SIZE", "two")
    check_refused(train(), "WORLD_SIZE = 'two'")


def test_a_number_of_devices_that_cannot_be(train, monkeypatch, capsys):
    for number in ("0", "-1", "two", ""):
        check_refused(invoke(capsys, "train", f"--devices={number}"), "--devices needs a number of devices")
    check_refused(train(model__compile="layers", devices=2), "model.compile = layers does not work on 2 ranks")


class TestPaths:
    """What the file system does not even look up."""

    NAME = "n" * 300

    @pytest.mark.parametrize(
        "command",
        [
            "train --data.path FILE --model.path NAME --dry-run",
            "train --config NAME",
            "train --data.path FILE --model.path MODEL --run.output NAME",
            "train --resume NAME",
            "plan --model.path NAME",
            "evaluate NAME --tasks gsm8k",
            "evaluate MODEL --tasks gsm8k --output NAME",
            "sweep --preset demo --seeds 0,1 --output NAME",
            "report NAME",
            "replay NAME",
            "grade NAME",
            "demo --output NAME",
        ],
    )
    def test_a_name_that_is_too_long(self, command, capsys, models, tmp_path):
        places = {
            "FILE": str(write(tmp_path / "prompts.jsonl", {"prompt": "ab"})), "MODEL": str(models / "fine"),
            "NAME": str(tmp_path / self.NAME),
        }  # fmt: skip
        outcome = invoke(capsys, *(places.get(word, word) for word in command.split()))
        check_refused(outcome, self.NAME)

    def test_a_directory_that_may_not_be_read(self, train, monkeypatch):
        def refuse(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "is_dir", refuse)
        check_refused(train(model__path="/closed/model"), "cannot use the path", "change the permissions")

    def test_other_errors_keep_their_traceback(self):
        with pytest.raises(OSError, match="Input/output"), named_paths():
            raise OSError(errno.EIO, "Input/output error", "a")
        with pytest.raises(OSError, match="too long"), named_paths():
            raise OSError(errno.ENAMETOOLONG, "File name too long")
