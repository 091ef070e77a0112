"""What loads but cannot be saved is found before the first step, and mended where that harms nobody."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cli_runs import options, settings
from fastflow import cli
from fastflow.config.reader import read_config
from fastflow.errors import FastflowError
from fastflow.models.weights.files import VOCABULARY_FILES, check_tokenizer_files
from fastflow.train import inputs, trainer
from fastflow.train.saves import rehearsal
from fastflow.train.saves.export import Exporter, on_cpu
from fastflow.train.saves.rehearsal import REHEARSAL, miniature
from fastflow.train.saves.room import save_size
from fastflow.train.trainer import Trainer
from small_models import make_causal_lm, save_model

GENERATION = [
    {"do_sample": False, "temperature": 0.6},
    {"do_sample": False, "top_p": 0.5, "top_k": 3},
    {"temperature": 0.6},
    {"pad_token_id": -1},
    {"length_penalty": 2.0},
    {"use_cache": False, "cache_implementation": "static"},
]
SLOW_TOKENIZER = """
import json, os
from transformers import PreTrainedTokenizer
class Letters(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "vocab.json"}
    def __init__(self, vocab_file, **options):
        self.words = json.load(open(vocab_file))
        super().__init__(**options)
    @property
    def vocab_size(self):
        return len(self.words)
    def get_vocab(self):
        return dict(self.words)
    def _tokenize(self, text, **_):
        return list(text)
    def _convert_token_to_id(self, token):
        return self.words.get(token, 1)
    def _convert_id_to_token(self, index):
        return dict(enumerate(self.words)).get(index, "?")
    def save_vocabulary(self, *_, **__):
        raise NotImplementedError("nobody wrote this")
"""


@pytest.fixture
def train(tmp_path, capsys):
    def run(**changes):
        code = cli.main(options(settings(tmp_path, **{"run__steps": 1, **changes})))
        return code, *capsys.readouterr()

    return run


def change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def with_slow_tokenizer(model):
    for file in model.glob("*token*"):
        file.unlink()
    words = ["<end>", "<unknown>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    (model / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (model / "letters.py").write_text(SLOW_TOKENIZER)
    (model / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Letters",
                "auto_map": {"AutoTokenizer": ["letters.Letters", None]},
                "eos_token": "<end>",
                "pad_token": "<end>",
                "unk_token": "<unknown>",
            }
        )
    )


@pytest.mark.parametrize("entries", GENERATION, ids=lambda entries: next(iter(entries)))
def test_generation_settings_that_contradict_themselves_are_saved_as_they_are(entries, train, tmp_path):
    file = save_model(tmp_path / "model") / "generation_config.json"
    change(file, **entries)
    code, out, err = train()
    assert code == 0, err
    assert "contradict themselves" in " ".join(out.split())
    saved = json.loads((tmp_path / "run" / "policy" / "generation_config.json").read_text())
    assert {name: saved[name] for name in entries if entries[name] is not False} == {
        name: value for name, value in entries.items() if value is not False
    }
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").generation_config is not None


def test_sound_generation_settings_need_no_word(train, tmp_path):
    change(save_model(tmp_path / "model") / "generation_config.json", do_sample=True, temperature=0.6)
    code, out, _ = train()
    assert code == 0 and "contradict" not in out
    saved = json.loads((tmp_path / "run" / "policy" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6 and saved["do_sample"] is True


@pytest.mark.parametrize("name", VOCABULARY_FILES)
def test_every_kind_of_vocabulary_is_found_and_copied(name, tmp_path):
    for file in ("config.json", name):
        (tmp_path / file).touch()
    check_tokenizer_files(str(tmp_path))
    assert [file.name for file in rehearsal._files_of(str(tmp_path))] == [name]


def test_a_tokenizer_that_does_not_serialise_is_copied(train, tmp_path):
    with_slow_tokenizer(save_model(tmp_path / "model"))
    code, out, err = train(model__trust_remote_code="true")
    assert code == 0, err
    assert "changes when it is saved" in " ".join(out.split()) and "files are copied" in " ".join(out.split())
    from transformers import AutoTokenizer

    ids = [
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("abc 12")["input_ids"]
        for folder in (tmp_path / "model", tmp_path / "run" / "policy")
    ]
    assert ids[0] == ids[1]


def test_a_tokenizer_that_cannot_be_saved_at_all_is_refused_before_the_first_step(tmp_path, train, monkeypatch):
    save_model(tmp_path / "model")
    from transformers import PreTrainedTokenizerFast

    def fail(self, *_, **__):
        raise NotImplementedError("it has no way to be saved")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    monkeypatch.setattr("fastflow.train.saves.rehearsal._files_of", lambda path: [])
    monkeypatch.setattr(trainer.Trainer, "step", lambda *_: pytest.fail("it trained"))
    code, _, err = train()
    assert code == 2 and err.count("\n") == 1
    assert f"the tokenizer of {tmp_path / 'model'} loads but cannot be saved" in err
    assert "NotImplementedError: it has no way to be saved" in err
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_reads_back_otherwise_is_found(tmp_path, train, monkeypatch):
    """Saved without an error, and another tokenizer."""
    save_model(tmp_path / "model")
    from transformers import PreTrainedTokenizerFast

    save = PreTrainedTokenizerFast.save_pretrained

    def lossy(self, directory, **options):
        saved = save(self, directory, **options)
        file = directory / "tokenizer.json"
        text = json.loads(file.read_text())
        text["model"]["vocab"] = dict(sorted(text["model"]["vocab"].items()))
        text["model"]["vocab"] = {word: index for index, word in enumerate(reversed(text["model"]["vocab"]))}
        file.write_text(json.dumps(text))
        return saved

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lossy)
    code, out, err = train()
    assert code == 0, err
    assert "after being read back" in " ".join(out.split())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "run" / "policy" / name).read_text() == (tmp_path / "model" / name).read_text()


@pytest.mark.parametrize("lora", [0, 2])
def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(lora, tmp_path, train, monkeypatch):
    from transformers import PreTrainedModel

    def fail(self, *_, **__):
        raise RuntimeError("Some tensors share memory")

    save_model(tmp_path / "model")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    monkeypatch.setattr(trainer.Trainer, "step", lambda *_: pytest.fail("it trained"))
    code, _, err = train(lora__rank=lora)
    assert code == 2 and err.count("\n") == 1
    assert "the policy of" in err and "loads but cannot be saved" in err and "Some tensors share memory" in err
    assert not (tmp_path / "run").exists()


def test_an_export_that_would_lack_a_weight_is_refused(tmp_path, train, monkeypatch):
    """Tied when it is saved, not tied when it is read back: the head would start at random."""
    save_model(tmp_path / "model", tied=True)
    from transformers import PreTrainedConfig

    save = PreTrainedConfig.save_pretrained

    def untied(self, directory, **options):
        save(self, directory, **options)
        change(directory / "config.json", tie_word_embeddings=False)

    monkeypatch.setattr(PreTrainedConfig, "save_pretrained", untied)
    code, _, err = train()
    assert code == 2
    assert "would be saved without lm_head.weight" in err and "tie_word_embeddings" in err


@pytest.mark.parametrize(
    "changes", [{}, {"lora__rank": 2}, {"model__checkpoint_share": 0.5, "model__autocast": "true"}]
)
def test_the_rehearsal_leaves_nothing_and_changes_nothing(changes, tmp_path):
    save_model(tmp_path / "model", tied=False)
    config = read_config([f"--{name}={value}" for name, value in settings(tmp_path, **changes).items()])[0]
    made = Trainer(config, Console(quiet=True))
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["run.lock"]
    live = on_cpu(made.learner.policy.model).state_dict()
    made.close()
    monkeypatched = pytest.MonkeyPatch()
    with monkeypatched.context() as patched:
        patched.setattr(inputs, "rehearse", lambda policy, exporter, settings, directory: (exporter, 0))
        plain = Trainer(config, Console(quiet=True))
    for name, weight in plain.learner.policy.model.state_dict().items():
        assert torch.equal(weight, live[name])
    plain.close()


def test_a_rehearsal_writes_no_weights(tmp_path, monkeypatch):
    """A model of 100 MB is rehearsed in kilobytes."""
    sizes = []
    save_model(tmp_path / "model", hidden_size=512, intermediate_size=2048, head_dim=128)
    remove = shutil.rmtree

    def look(path, **options):
        if path == tmp_path / "run" / REHEARSAL and path.exists():
            sizes.append(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    config = read_config([f"--{name}={value}" for name, value in settings(tmp_path).items()])[0]
    Trainer(config, Console(quiet=True)).close()
    assert max(sizes) < 100_000 < (tmp_path / "model" / "model.safetensors").stat().st_size / 100


def test_a_miniature_ties_what_is_tied():
    tied, untied = miniature(make_causal_lm(tied=True)), miniature(make_causal_lm(tied=False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert {parameter.numel() for parameter in tied.parameters()} == {1}


def test_a_killed_rehearsal_does_not_block_the_next_run(train, tmp_path):
    (tmp_path / "run" / REHEARSAL / "policy").mkdir(parents=True)
    (tmp_path / "run" / "run.lock").touch()
    code, _, err = train()
    assert code == 0, err
    assert not (tmp_path / "run" / REHEARSAL).exists()


BEST = {"eval__every": 9, "eval__tasks": "[own.jsonl]", "run__best_metric": "eval/own/avg@4"}


class TestRoom:
    Usage = namedtuple("Usage", "total used free")

    @pytest.fixture
    def made(self, tmp_path, monkeypatch):
        """A function that makes a Trainer on a disk with room for so many saves."""
        (tmp_path / "own.jsonl").write_text('{"prompt": "ab", "answer": "2"}\n')

        def make(saves: float, **changes):
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
            save_model(tmp_path / "model", dtype=getattr(torch, changes.get("model__dtype", "float32")))
            config = read_config([f"--{name}={value}" for name, value in settings(tmp_path, **changes).items()])[0]
            probe = Trainer(config, Console(quiet=True))
            size = save_size(probe.learner, config.run.export_dtype).total + 50_000  # tokenizer and settings
            probe.close()
            monkeypatch.setattr(shutil, "disk_usage", lambda path: self.Usage(0, 0, int(saves * size)))
            made = Trainer(config, Console(quiet=True))
            made.close()

        return make

    def test_no_room_for_a_save(self, made, tmp_path):
        with pytest.raises(FastflowError, match=r"run\.output = .* has .* MiB left, but a save of this run takes"):
            made(0.9)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("room", "changes", "saves", "remedy"),
        [
            (1.5, {"run__save_every": 1}, 3, "set run.save_every = 0"),
            (2.5, {"run__save_every": 1}, 3, "set run.keep = 1, set run.save_every = 0"),
            (1.5, {"run__save_every": 2, "run__keep": 4}, 2, "set run.save_every = 0"),
            (3.5, {"run__save_every": 1, "run__steps": 9, **BEST}, 4, "set run.keep = 1"),
        ],
    )
    def test_no_room_for_those_that_will_stand_side_by_side(self, room, changes, saves, remedy, made):
        """Those that are kept, the best one, and the one that is being written."""
        with pytest.raises(FastflowError, match=rf"but {saves} saves of this run take ") as caught:
            made(room, **changes)
        assert remedy in str(caught.value)

    def test_no_room_for_a_second_one_is_a_warning(self, made, caplog):
        made(1.5)
        assert "there is no room for a second save beside it" in caplog.text

    def test_room_for_all_of_them(self, made, caplog):
        made(3.5, run__save_every=1)
        assert "room" not in caplog.text

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"lora__rank": 4},
            {"lora__rank": 4, "model__dtype": "bfloat16"},
            {"objective__log_z": "group_mean", "run__export_dtype": "bfloat16"},
            {"model__dtype": "bfloat16"},
        ],
    )
    def test_the_estimate_is_what_a_save_takes(self, changes, tmp_path):
        save_model(tmp_path / "model", dtype=getattr(torch, changes.get("model__dtype", "float32")), hidden_size=128)
        config = read_config([f"--{name}={value}" for name, value in settings(tmp_path, **changes).items()])[0]
        trained = Trainer(config, Console(quiet=True))
        estimate = save_size(trained.learner, config.run.export_dtype)
        save = trained.run().resolve().parent
        assert _bytes(save / "policy", "*.safetensors") == pytest.approx(estimate.policy, abs=10_000)
        assert _bytes(save / "adapter", "*.safetensors") == pytest.approx(estimate.adapter, abs=10_000)
        state = estimate.optimizer + estimate.rounded
        (file,) = (save / "trainer" / "tensors").glob("*.safetensors")
        assert sum(tensor.nbytes for tensor in load_file(file).values()) == pytest.approx(state, abs=2_000)


def _bytes(directory, pattern: str) -> int:
    return sum(file.stat().st_size for file in directory.glob(pattern))


def test_an_exporter_needs_no_rehearsal(tmp_path):
    """It writes a sound model by itself."""
    from fastflow.config.schema import ModelConfig
    from fastflow.models.packed import PackedModel
    from fastflow.models.tokenizer import load_tokenizer

    save_model(tmp_path / "model")
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path / "model")))
    assert Exporter(tokenizer).export(PackedModel(make_causal_lm()), tmp_path / "out").dtype == "float32"
