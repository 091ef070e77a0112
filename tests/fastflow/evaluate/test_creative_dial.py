"""The dial: scaled adapters are what their factor says, and the effective alpha is the power that explains them."""

import json

import numpy as np
import pytest
import torch

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.evaluate.creative.effective_alpha import LogprobScorer, effective_alpha
from fastflow.evaluate.creative.scaling import scaled
from fastflow.evaluate.models import ModelSource, digest
from fastflow.models.packed import PackedModel
from fastflow.models.weights.merging import adapted_layers, merged_weight, scale_adapters
from small_models import make_causal_lm


def rows_of(random, prompts, samples, policy):
    """Random responses; policy: log p of one with its prompt, log p_base and length."""
    found = []
    for prompt in range(prompts):
        lengths = random.integers(3, 40, samples)
        base = -random.uniform(0.2, 2.0, samples) * lengths
        found.append([
            {"tokens": int(length), "base_logprob": float(logprob),
             "policy_logprob": policy(prompt, float(logprob), int(length))}
            for length, logprob in zip(lengths, base, strict=True)
        ])  # fmt: skip
    return found


class TestEffectiveAlpha:
    def test_the_optimum_that_powerflow_trains_for(self):
        rates = [0.3, 1.1, 0.6, 2.0]
        rows = rows_of(np.random.default_rng(0), 4, 8, lambda prompt, base, length: 2.5 * base - rates[prompt] * length)
        found = effective_alpha(rows)
        assert found["value"] == pytest.approx(2.5) and found["r2"] == pytest.approx(1)
        assert found["error"] == pytest.approx(0, abs=1e-9)
        assert abs(found["sequence"] - 2.5) > 0.01  # the sums alone would mix in the length

    def test_the_power_distribution_itself(self):
        rows = rows_of(np.random.default_rng(1), 3, 8, lambda prompt, base, length: 4 * base + prompt)
        assert effective_alpha(rows)["sequence"] == pytest.approx(4)

    def test_the_base(self):
        found = effective_alpha(rows_of(np.random.default_rng(2), 3, 8, lambda prompt, base, length: base))
        assert found["value"] == pytest.approx(1) and found["sequence"] == pytest.approx(1)

    def test_least_squares_with_an_intercept_for_each_prompt(self):
        random = np.random.default_rng(3)
        rows = rows_of(random, 5, 6, lambda prompt, base, length: 1.7 * base - prompt * length + random.normal(0, 3))
        flat = [(place, row) for place, of_prompt in enumerate(rows) for row in of_prompt]
        x = np.array([row["base_logprob"] / row["tokens"] for _, row in flat])
        y = np.array([row["policy_logprob"] / row["tokens"] for _, row in flat])
        design = np.column_stack([x, *(np.array([place == prompt for place, _ in flat], float) for prompt in range(5))])
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        residual = y - design @ solution
        inverse = np.linalg.inv(design.T @ design)
        sides = [design[at : at + 6].T @ residual[at : at + 6] for at in range(0, 30, 6)]
        clustered = inverse @ sum(np.outer(side, side) for side in sides) @ inverse
        found = effective_alpha(rows)
        assert found["value"] == pytest.approx(solution[0])
        assert found["error"] == pytest.approx(np.sqrt(clustered[0, 0] * 5 / 4))
        assert found["high"] - found["low"] == pytest.approx(2 * 2.776445 * found["error"])  # t with 4 degrees

    def test_the_interval_of_a_dozen_prompts_covers_what_it_says(self):
        """Slopes that differ from prompt to prompt, around 2."""
        random, covered = np.random.default_rng(0), 0
        for _ in range(1000):
            rows = []
            for slope in 2 + 0.5 * random.standard_normal(12):
                lengths, x = random.integers(5, 40, 16), random.standard_normal(16) - 2
                y = slope * x + 0.3 * random.standard_normal(16)
                rows.append([
                    {"tokens": int(length), "base_logprob": base * length, "policy_logprob": policy * length}
                    for length, base, policy in zip(lengths, x, y, strict=True)
                ])  # fmt: skip
            found = effective_alpha(rows)
            covered += found["low"] < 2 < found["high"]
        assert 930 <= covered <= 970

    def test_prompts_whose_responses_are_equal_are_no_evidence(self):
        random = np.random.default_rng(5)
        rows = rows_of(random, 3, 6, lambda prompt, base, length: 2 * base + random.normal(0, 3))
        equal = [{"tokens": 3, "base_logprob": -1.5, "policy_logprob": -2.0}] * 6
        assert effective_alpha([*rows, equal, equal]) == pytest.approx(effective_alpha(rows))

    def test_equal_responses_say_nothing(self):
        row = {"tokens": 3, "base_logprob": -1.5, "policy_logprob": -2.0}
        assert effective_alpha([[row, row], [row, row]])["value"] is None

    def test_one_prompt_has_no_error(self):
        rows = rows_of(np.random.default_rng(4), 1, 4, lambda prompt, base, length: 2 * base)
        assert effective_alpha(rows)["error"] is None


@pytest.fixture
def adapted():
    """A function that makes the same adapted model each time."""
    peft = pytest.importorskip("peft")

    def make():
        torch.manual_seed(5)
        model = peft.get_peft_model(
            make_causal_lm(), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        return model.requires_grad_(False).eval()

    return make


class TestScaling:
    @pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 1.5])
    def test_a_weight_moves_along_the_line_from_base_to_adapted(self, adapted, scale):
        whole, part = adapted(), adapted()
        scale_adapters(part, scale)
        pairs = list(zip(adapted_layers(whole), adapted_layers(part), strict=True))
        assert len(pairs) == 4
        for (_, full), (_, scaled_layer) in pairs:
            base = full.base_layer.weight.double()
            expected = base + scale * (merged_weight(full, torch.float64) - base)
            torch.testing.assert_close(merged_weight(scaled_layer, torch.float64), expected)

    def test_the_forward_pass_follows(self, adapted):
        ids = torch.arange(1, 9)[None]
        with torch.no_grad():
            model = adapted()
            full = model(ids).logits
            with model.disable_adapter():
                base = model(ids).logits
            scale_adapters(model, 0.0)
            assert torch.equal(model(ids).logits, base) and not torch.allclose(full, base)

    def test_scores_are_those_of_both_models(self, adapted):
        model = adapted()
        scale_adapters(model, 0.5)
        prompts = [Prompt(np.arange(1, 4)), Prompt(np.array([7]))]
        responses = [(5, 6, 0), (9, 8, 7, 0)]
        found = LogprobScorer(PackedModel(model)).score(prompts, responses)
        for prompt, ids, pair in zip(prompts, responses, found, strict=True):
            whole = torch.tensor([[*prompt.ids.tolist(), *ids]])
            with torch.no_grad():
                model.get_base_model().config._attn_implementation = "sdpa"
                policy = model(whole).logits
                with model.disable_adapter():
                    base = model(whole).logits
            for logits, value in zip((policy, base), pair, strict=True):
                logprobs = logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1)
                expected = logprobs.gather(1, torch.tensor(ids)[:, None]).sum()
                assert value == pytest.approx(float(expected), abs=1e-4)


class TestSubjects:
    def write(self, directory, **more):
        directory.mkdir(parents=True, exist_ok=True)
        entries = {"base_model_name_or_path": "base", "peft_type": "LORA", "bias": "none", **more}
        (directory / "adapter_config.json").write_text(json.dumps(entries))
        return ModelSource(str(directory), "base", str(directory))

    def test_each_scale_is_a_subject_of_its_own(self, tmp_path):
        adapter = self.write(tmp_path / "adapter")
        found = scaled([ModelSource("base", "base"), adapter], (0.0, 0.25))
        assert [subject.scale for subject in found] == [None, 0.0, 0.25]
        assert [subject.path for subject in found] == ["base"] * 3
        assert len({subject.label for subject in found}) == 3
        assert scaled([adapter], ()) == [adapter]

    def test_the_scale_is_a_part_of_the_digest(self, tmp_path):
        from fastflow.config.schema import ModelConfig

        self.write(tmp_path / "adapter")
        keys = {
            digest(ModelSource("x", str(tmp_path), str(tmp_path / "adapter"), scale), ModelConfig())
            for scale in (None, 0.0, 0.5)
        }
        assert len(keys) == 3

    @pytest.mark.parametrize(
        ("more", "complaint"),
        [
            ({"peft_type": "LOHA"}, "of the kind LOHA"),
            ({"use_dora": True}, "use_dora"),
            ({"bias": "all"}, "trains biases"),
            ({"modules_to_save": ["lm_head"]}, "replaces whole layers"),
        ],
    )
    def test_what_a_factor_does_not_scale(self, tmp_path, more, complaint):
        with pytest.raises(FastflowError, match=complaint):
            scaled([self.write(tmp_path, **more)], (0.5,))

    def test_a_scale_twice_and_no_adapters(self, tmp_path):
        with pytest.raises(FastflowError, match="twice"):
            scaled([self.write(tmp_path)], (0.5, 0.5))
        with pytest.raises(FastflowError, match="no LoRA adapters"):
            scaled([ModelSource("base", "base")], (0.5,))
