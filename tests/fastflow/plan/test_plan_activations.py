"""The plan's counts of parameters and activations against models that are really built and run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.opening import load_models
from fastflow.plan.activations import checkpoint_bytes, count_saved
from fastflow.plan.remedies import changed
from fastflow.plan.rows import FORWARD
from fastflow.plan.sizes import count_adapters, read_sizes
from fastflow.plan.stand_ins import SHARING_VARLEN, WIDE_SDPA
from fastflow.plan.trainer_rows import microbatch_tokens, numbers_of
from fastflow.train.learner import Learner
from plans import CPU, GPU, configure, rows_of, total_bytes
from saved_bytes import saved_bytes
from small_models import FAMILIES, MIXTURES, OWN_SETTINGS, make_groups, save_model


class TestCounts:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_parameters_are_those_of_the_loaded_models(self, models, family, tied, dtype):
        config = configure(models / (family if tied else f"{family}-untied"), model__dtype=dtype)
        policy, base = load_models(config.model, config.lora)
        rows = rows_of(config)
        assert rows["trainer", "policy's parameters"].bytes == total_bytes(policy.parameters())
        assert rows["trainer", "frozen base"].bytes == total_bytes(base.model.parameters())

    @pytest.mark.parametrize(("rank", "log_z"), [(0, "learned"), (0, "group_mean"), (4, "learned")])
    def test_gradients_and_moments_are_those_of_a_step(self, models, rng, rank, log_z):
        config = configure(models / "qwen3", objective__log_z=log_z, lora__rank=rank)
        learner = Learner(*load_models(config.model, config.lora), config, total_updates=1)
        learner.update(make_groups(rng))
        trained, head = learner.policy.parameters(), learner.objective.log_z_head
        own = [] if head is None else list(head.parameters())
        moments = [value for entry in trained for value in learner.optimizer.state[entry].values()]
        rows = rows_of(config)
        assert rows["trainer", "gradients"].bytes == total_bytes(trained)
        assert rows["trainer", "AdamW's moments"].bytes == total_bytes(moments)
        assert ("trainer", "log_z network") in rows or head is None
        if head is not None:
            assert rows["trainer", "log_z network"].bytes == 4 * total_bytes(own)

    @pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
    def test_adapters_are_the_only_thing_that_lora_trains(self, models, targets):
        config = configure(models / "llama", lora__rank=3, lora__targets=targets, model__dtype="bfloat16")
        policy, _ = load_models(config.model, config.lora)
        trained = policy.parameters()
        assert count_adapters(config.model.path, config.model, config.lora).tensors == len(trained)
        rows = rows_of(config)
        assert rows["trainer", "adapters"].bytes == total_bytes(trained)
        assert ("trainer", "frozen base") not in rows
        assert ("trainer", "gradient of the head") not in rows

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("autocast", ["true", "false"])
    @pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
    def test_a_bfloat16_base_under_autocast_takes_half(self, models, tmp_path, family, tied, autocast):
        path = save_model(tmp_path / "narrow", family=family, tied=tied, dtype=torch.bfloat16)
        config = configure(path, model__autocast=autocast)
        policy, base = load_models(config.model, config.lora)
        rows = rows_of(config)
        assert rows["trainer", "policy's parameters"].bytes == total_bytes(policy.parameters())
        assert rows["trainer", "frozen base"].bytes == total_bytes(base.model.parameters())
        ratio = rows["trainer", "frozen base"].bytes / rows["trainer", "policy's parameters"].bytes
        assert 0.5 < ratio < 0.53 if autocast == "true" else ratio == 1

    @pytest.mark.parametrize("family", MIXTURES)
    def test_a_bfloat16_mixture_under_autocast_takes_half_as_base(self, family, tmp_path):
        """But for its norms and routers, and for convolutions and rates of linear attention."""
        path = save_model(tmp_path / "narrow", family=family, dtype=torch.bfloat16)
        config = configure(path, model__autocast="true")
        _, base = load_models(config.model, config.lora)
        rows = rows_of(config)
        assert rows["trainer", "frozen base"].bytes == total_bytes(base.model.parameters())
        assert rows["trainer", "frozen base"].bytes < 0.55 * rows["trainer", "policy's parameters"].bytes

    def test_another_base_is_counted_for_itself(self, models, tmp_path):
        deep = save_model(tmp_path / "deep", num_hidden_layers=5, head_dim=16)
        rows = rows_of(configure(models / "llama", model__base=deep))
        assert rows["trainer", "frozen base"].bytes == 4 * read_sizes(str(deep), configure(deep).model).parameters
        assert rows["trainer", "frozen base"].bytes > rows["trainer", "policy's parameters"].bytes


NARROW = {"model__autocast": "true", "model__residual_stream": "bfloat16"}
CASES = [
    {},
    {"model__dtype": "bfloat16"},
    {"model__autocast": "true"},
    {"model__autocast": "true", "model__dtype": "bfloat16"},
    NARROW,
    {"lora__rank": 4},
    {"lora__rank": 4, "model__dtype": "bfloat16"},
    {"lora__rank": 4, "model__autocast": "true"},
    {"lora__rank": 4, "model__autocast": "true", "model__dtype": "bfloat16"},
    {"lora__rank": 4, **NARROW},
    {"lora__rank": 4, "lora__dropout": 0.1},
    {"lora__rank": 4, "lora__dropout": 0.1, "model__autocast": "true"},
    {"lora__rank": 4, "lora__dropout": 0.1, "model__dtype": "bfloat16"},
    {"model__checkpoint_share": 1},
    {"model__checkpoint_share": 1, "model__autocast": "true"},
    {"model__checkpoint_share": 1, **NARROW},
    {"model__checkpoint_share": 1, "lora__rank": 4},
]
CASES_OF_OTHERS = [
    {}, {"model__dtype": "bfloat16"}, NARROW, {"lora__rank": 4, "lora__dropout": 0.1, "model__autocast": "true"},
]  # fmt: skip


class TestActivations:
    """Against the tensors that autograd saves in a real forward pass; layers are separated from the rest by depth."""

    @pytest.mark.parametrize(("family", "changes"), [
        *(("llama", changes) for changes in CASES),
        *((family, changes) for family in FAMILIES[1:] for changes in CASES_OF_OTHERS),
    ], ids=str)  # fmt: skip
    @pytest.mark.filterwarnings("ignore")
    def test_a_layer_saves_what_the_plan_says(self, tmp_path, family, changes):
        saved = {}
        for layers in (2, 4):
            own = {"sliding_window": 128} if "sliding_window" in OWN_SETTINGS.get(family, {}) else {}  # without masks
            path = save_model(tmp_path / str(layers), family=family, num_hidden_layers=layers, **WIDTHS, **own)
            config = configure(path, **changes)
            saved[layers], tokens = saved_and_tokens(config)
        model = read_sizes(str(path), config.model)
        numbers = numbers_of(config, model, CPU)
        if config.model.checkpoint_share:
            expected = tokens * checkpoint_bytes(model, numbers)
        else:
            casts = 2 * model.body_linear // model.layers if numbers.autocast and not numbers.bfloat16 else 0
            if numbers.autocast and numbers.lora_rank:  # no row has the adapters' own copies
                casts += 2 * count_adapters(str(path), config.model, config.lora).parameters // model.layers
            if family == "gemma3_text":  # its norms multiply by 1 + weight, in float32
                casts += 4 * (4 * model.hidden + 2 * model.head_dim)
            ends = 4 * model.experts  # of each expert's rows, in 4 B
            expected = tokens * count_saved(model, numbers).layer + casts + ends
        found = (saved[4] - saved[2]) / 2
        # the last chunk of a sequence hands on no state, and these have one chunk
        assert 0.95 * expected < found < expected if model.state else found == expected

    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    @pytest.mark.parametrize("changes", [{"model__autocast": "true"}, NARROW], ids=["float32", "bfloat16"])
    def test_a_layer_of_a_rank(self, tmp_path, family, changes):
        """Ranks gather layers in bfloat16, so that their norms put out what the residual stream is."""
        saved = {}
        for layers in (2, 4):
            path = save_model(tmp_path / str(layers), family=family, num_hidden_layers=layers, **WIDTHS)
            config = configure(path, **changes)
            saved[layers], tokens = saved_and_tokens(
                config, prepare=lambda policy: policy.get_decoder().layers.bfloat16()
            )
        model = read_sizes(str(path), config.model)
        several = numbers_of(config, model, replace(CPU, count=2))
        assert (saved[4] - saved[2]) / 2 == tokens * count_saved(model, several).layer
        shared = 3 * 2 * model.hidden if changes is NARROW else 0  # five copies of two inputs are two
        assert count_saved(model, numbers_of(config, model, CPU)).layer - count_saved(model, several).layer == shared

    @pytest.mark.parametrize("family", ["llama", "olmo3", "phi3", "granite"])
    def test_the_whole_row_of_a_full_fine_tuning(self, tmp_path, family):
        path = save_model(tmp_path / "model", family=family, **WIDTHS, sliding_window=128)
        config = configure(path, data__max_prompt_tokens=9, rollout__max_response_tokens=56,
                           batch__tokens_per_microbatch=256)  # fmt: skip
        saved, tokens = saved_and_tokens(config)
        assert tokens == microbatch_tokens(config) == 256
        assert rows_of(config)["trainer", "activations"].bytes == saved

    @pytest.mark.parametrize(
        ("changes", "shares_heads", "kernel"),
        [({}, True, WIDE_SDPA), ({"model__autocast": "true"}, False, "varlen"),
         ({"model__dtype": "bfloat16"}, True, SHARING_VARLEN),
         ({"model__autocast": "true", "model__attention": "sdpa"}, True, "sdpa")],
    )  # fmt: skip
    def test_kernels_of_a_gpu(self, models, changes, shares_heads, kernel, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # whether or not flash-attn is installed
        monkeypatch.setattr("fastflow.models.layers.attention.varlen_shares_heads", lambda: shares_heads)
        config = configure(models / "llama", model__device="cuda", **changes)
        assert numbers_of(config, read_sizes(config.model.path, config.model), GPU).kernel == kernel

    @pytest.mark.parametrize("changes", [{}, {"model__autocast": "true"}, NARROW], ids=str)
    def test_the_row_of_a_share_that_recomputes(self, tmp_path, changes):
        path = save_model(tmp_path / "model", num_hidden_layers=4, **WIDTHS)
        config = configure(path, model__checkpoint_share=0.5, data__max_prompt_tokens=9,
                           rollout__max_response_tokens=56, batch__tokens_per_microbatch=256, **changes)  # fmt: skip
        saved, _ = saved_and_tokens(config)
        rows = rows_of(config)
        copies = rows.get(("trainer", "bfloat16 copies of the weights"))
        assert rows["trainer", "activations"].bytes + (copies.bytes if copies else 0) == saved
        assert ("trainer", "one layer, recomputed") not in rows
        again = rows.get(("trainer", "bfloat16 copies in recomputed layers"))
        assert (again is None) is (not changes)
        assert again is None or (again.bytes == copies.bytes and again.moments == (FORWARD,))

    def test_the_gradient_of_experts_is_dense(self, tmp_path):
        """Before it is added: of gate and up of all experts of a layer, in bfloat16 and in float32 under autocast."""
        path = save_model(tmp_path / "model", family="qwen3_moe")
        name, dense = ("trainer", "gradient of the experts"), 4 * 2 * 16 * 32
        assert rows_of(configure(path))[name].bytes == 4 * dense
        assert rows_of(configure(path, model__autocast="true"))[name].bytes == (2 + 4) * dense
        assert name not in rows_of(configure(path, lora__rank=2))
        assert name not in rows_of(configure(path), replace(CPU, count=2))  # a part of a layer's

    def test_onednn_keeps_code_for_experts_in_bfloat16(self, tmp_path):
        path, name = save_model(tmp_path / "model", family="qwen3_moe"), ("trainer", "oneDNN's code for experts")
        assert name in rows_of(configure(path, model__autocast="true")) and name not in rows_of(configure(path))

    def test_recomputed_experts_leave_no_copies(self, tmp_path):
        """Autocast keeps those of linear layers and routers until the forward pass ends; experts are rounded anew."""
        path = save_model(tmp_path / "model", family="qwen3_moe")
        rows = rows_of(configure(path, model__autocast="true", model__checkpoint_share=1))
        attention, router = 2 * 32 * (4 + 2) * 8, 4 * 32
        assert rows["trainer", "bfloat16 copies in recomputed layers"].bytes == 2 * 2 * (attention + router)

    def test_ligers_layers_save_less(self, models, monkeypatch):
        """By the formulas: 15 numbers of the width and the MLP's silu less in bfloat16 parameters; see test_devices."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "liger_kernel")
        for family, dtype in (("llama", "float32"), ("qwen3", "bfloat16")):
            config = configure(models / family, model__device="cuda", model__dtype=dtype)
            model = read_sizes(config.model.path, config.model)
            numbers = numbers_of(config, model, GPU)
            assert numbers.fused_layers
            plain = numbers_of(changed(config, "model.fused_layers", "off"), model, GPU)
            compiled = numbers_of(changed(config, "model.compile", "layers"), model, GPU)
            assert not plain.fused_layers and compiled == plain
            size, normalised = (4, 0) if dtype == "float32" else (2, model.query + model.key)
            less = 2 * 4 * model.hidden + size * model.intermediate + 4 * normalised
            assert count_saved(model, plain).layer - count_saved(model, numbers).layer == less
        wide = configure(models / "llama", model__device="cuda", model__autocast="true")
        of_wide, of_narrow = (
            count_saved(model, numbers_of(changed(wide, "model.residual_stream", stream), model, GPU)).layer
            for stream in ("float32", "bfloat16")
        )
        assert of_wide - of_narrow == 10 * model.hidden  # two inputs of norms, and three of five linear inputs

    def test_code_that_does_not_run_without_memory_is_named(self, tmp_path, monkeypatch):
        """Rather than a number that is wrong."""

        def forward(mlp, hidden):
            return hidden * float(hidden.sum())

        monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
        path = save_model(tmp_path / "model")
        with pytest.raises(
            FastflowError, match=r"the activations of \S+ cannot be counted, since its code does not run"
        ):
            rows_of(configure(path))

    @pytest.mark.parametrize(
        ("family", "rope"),
        [("llama", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
         ("phi3", {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
                   "short_factor": [1.0] * 4, "long_factor": [2.0] * 4})],
    )  # fmt: skip
    def test_position_embeddings_that_follow_the_length(self, tmp_path, family, rope):
        """They would ask for numbers, of which there are none."""
        plain, scaled = (
            save_model(tmp_path / name, family=family, rope_parameters=parameters)
            for name, parameters in (("plain", {"rope_type": "default", "rope_theta": 1e4}), ("scaled", rope))
        )
        found, expected = (rows_of(configure(path))["trainer", "activations"].bytes for path in (scaled, plain))
        assert found == expected

    def test_the_models_own_dropout_is_off(self, tmp_path):
        rates = {"attention_dropout": 0.1, "resid_pdrop": 0.1}
        plain, dropping = (
            save_model(tmp_path / name, family="phi3", **changes) for name, changes in (("plain", {}), ("rates", rates))
        )
        found, expected = (rows_of(configure(path))["trainer", "activations"].bytes for path in (dropping, plain))
        assert found == expected

    def test_tokens_of_the_largest_microbatch(self, models):
        lengths = {"data__max_prompt_tokens": 10, "rollout__max_response_tokens": 91}
        assert microbatch_tokens(configure(models / "llama", batch__tokens_per_microbatch=500, **lengths)) == 500
        assert microbatch_tokens(configure(models / "llama", batch__tokens_per_microbatch=50, **lengths)) == 100
        few = {"batch__prompts_per_step": 4, "batch__responses_per_prompt": 2, "batch__updates_per_rollout": 2}
        assert microbatch_tokens(configure(models / "llama", **few, **lengths)) == 2 * 2 * 100


WIDTHS = {
    "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def saved_and_tokens(config, prepare=lambda model: None) -> tuple[int, int]:
    """Bytes that autograd saves in one forward pass, parameters and buffers aside; and the tokens of the batch."""
    policy, _ = load_models(config.model, config.lora)
    prepare(policy.causal_lm)
    policy.model.train()
    rng = np.random.default_rng(0)
    answers = tuple(Trajectory(rng.integers(1, 40, 56), np.zeros(56, np.float32), "length") for _ in range(4))
    (batch,) = pack([Group(Prompt(rng.integers(1, 40, 9)), answers)], 10**9)
    return saved_bytes(policy, batch), batch.tokens
