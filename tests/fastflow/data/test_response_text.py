"""Text rules see what the model wrote: special tokens included, but for the one that closes the response."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

from fastflow import cli
from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import ResponseText, check_spelling, special_tokens, spell, with_literal_tokens
from fastflow.data.trajectory import Group, Prompt, Trajectory, flatten
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.objectives.judging import Judge
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.rollout.server.completion import request_body
from fastflow.rollout.stop_texts import StopTexts
from small_models import make_causal_lm, save_model
from special_tokens import END, END_ID, PIECES, TOOL, TOOL_ID, TURN, TURN_ID, UNKNOWN_ID, make_chat_tokenizer

seen: list[str] = []


def remember(text, record) -> bool:
    """A format_check and a reward for the tests."""
    seen.append(text)
    return TURN in text


@pytest.fixture(scope="module")
def tokenizer():
    return make_chat_tokenizer()


def ids_of(text: str) -> list[int]:
    """Token ids of letters, digits and the four tokens above."""
    parts = re.findall(f"{re.escape(TURN)}|{TOOL}|{END}|.", text)
    names = {TURN: TURN_ID, TOOL: TOOL_ID, END: END_ID}
    return [names[part] if part in names else 2 + PIECES.index(part) for part in parts]


def judge(tokenizer, *texts: str, end_ids=None, **settings):
    judged = Judge(ObjectiveConfig(**settings), tokenizer)
    if end_ids is not None:
        judged.end_with(end_ids)
    trajectories = tuple(
        Trajectory(np.array(ids_of(text)), np.zeros(len(ids_of(text)), np.float32), "stop") for text in texts
    )
    return judged([Group(Prompt(np.array([2]), "a", {"x": 1}), trajectories)])


class TestText:
    @pytest.mark.parametrize(
        ("written", "text"),
        [
            ("ab", "ab"),
            (f"ab{END}", "ab"),
            (f"a{TURN}b{END}", f"a{TURN}b"),
            (f"a{TURN}", f"a{TURN}"),
            (f"a{TURN}{END}", f"a{TURN}"),
            (f"{TOOL}a{TOOL}{END}", f"{TOOL}a{TOOL}"),
            (f"a{END}{END}", f"a{END}"),
            (f"{END}", ""),
            ("", ""),
        ],
    )
    def test_only_the_closing_end_token_is_left_out(self, tokenizer, written, text):
        assert ResponseText(tokenizer, (END_ID,)).of(ids_of(written)) == text

    def test_every_end_token_of_the_model_counts(self, tokenizer):
        text = ResponseText(tokenizer, (END_ID, TURN_ID))
        assert text.of(ids_of(f"a{TURN}")) == text.of(ids_of(f"a{END}")) == "a"

    def test_an_ordinary_token_that_ends_responses_is_text(self, tokenizer):
        """As it always was: nothing but special tokens was ever left out."""
        assert ResponseText(tokenizer, (END_ID, *ids_of("z"))).of(ids_of("az")) == "az"

    @given(st.lists(st.integers(0, 39), max_size=12))
    def test_nothing_but_the_last_token_can_be_missing(self, ids):
        tokenizer = make_chat_tokenizer()
        whole = "".join(tokenizer.convert_ids_to_tokens(ids))
        expected = whole.removesuffix(END) if ids and ids[-1] == END_ID else whole
        assert ResponseText(tokenizer, (END_ID,)).of(ids) == expected

    def test_special_tokens_without_a_role_are_known(self, tokenizer):
        assert special_tokens(tokenizer) == {END_ID: END, UNKNOWN_ID: "<unknown>", TURN_ID: TURN}

    def test_spaces_are_not_cleaned_up(self):
        """Llama-3's tokenizers ask for it; a stop text such as " ." could then never be seen."""
        tokenizer = make_chat_tokenizer("ab ." + PIECES[4:])
        tokenizer.clean_up_tokenization_spaces = True
        assert spell(tokenizer, [2, 4, 5]) == "a ."


class TestSpelling:
    @pytest.fixture
    def spaced(self):
        """Llama's way: the tokenizer turns the mark of a space into one, in special tokens too."""
        from tokenizers import decoders

        tokenizer = make_chat_tokenizer()
        tokenizer.add_tokens([AddedToken("<end▁of▁it>", special=True)])
        tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        return tokenizer

    def test_a_special_token_that_cannot_be_seen_is_refused(self, spaced):
        with pytest.raises(FastflowError, match=r"rollout\.stop holds .*<end▁of▁it>, .* spells '<end of it>'"):
            check_spelling(spaced, "rollout.stop", "a<end▁of▁it>")
        with pytest.raises(FastflowError, match=r"objective\.format_pattern holds the special token <end▁of▁it>"):
            judge(spaced, "a", format_pattern="<end▁of▁it>")

    def test_what_is_seen_is_not(self, spaced):
        for text in ("<end of it>", TURN, "end", ""):
            check_spelling(spaced, "rollout.stop", text)
        assert stops_at(spaced, [2, 40, 3], ("<end of it>",)) == 2


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "written", "fine"),
        [
            (r"<\|im_end\|>", f"ab{TURN}{END}", True),
            (r"<\|im_end\|>", f"ab{TURN}", True),
            (r"<\|im_end\|>", f"ab{END}", False),
            ("<|im_end|>", f"ab{TURN}{END}", True),
            ("<|im_end|>", f"a{TOOL}{END}", False),  # as a regular expression it would find < or >
            (f"x{TURN}y", f"x{TURN}y", True),
            ("<tool>.*<tool>", f"{TOOL}1{TOOL}{END}", True),
            (r"\d$", f"a1{END}", True),  # as before
            (r"\d$", "a1", True),
            (r"\d$", f"a1{TURN}{END}", False),
            (r".", END, False),  # an empty response stays empty
            (r"1<end>$", f"a1{END}", True),  # a pattern that names the closing token sees it
            (r"1(<end>)?$", f"a1{END}", True),
            (r"1(<end>)?$", "a1", True),
        ],
    )
    def test_a_pattern_sees_special_tokens(self, tokenizer, pattern, written, fine):
        assert judge(tokenizer, written, format_pattern=pattern).well_formed == [fine]

    def test_a_closing_token_that_is_not_named_is_left_out(self, tokenizer):
        judgement = judge(tokenizer, f"1{END}", f"1{TURN}", end_ids=(END_ID, TURN_ID), format_pattern=r"1(<end>)?$")
        assert judgement.well_formed == [True, True]

    def test_what_stands_for_itself_is_said(self, tokenizer, caplog):
        judge(tokenizer, "a", format_pattern="<|im_end|>")
        assert caplog.messages == [
            "objective.format_pattern holds the special token <|im_end|>, whose characters have another meaning in a "
            r"regular expression; fastflow takes it as the token: write <\|im_end\|>"
        ]

    @pytest.mark.parametrize("pattern", [r"a|b", r"[abc]", r"<\|im_end\|>", "<end>", r"\w+|\d"])
    def test_other_patterns_stay_as_they_are(self, tokenizer, pattern, caplog):
        assert with_literal_tokens(pattern, [*special_tokens(tokenizer).values(), "|", "[INST]"]) == pattern
        assert not caplog.messages

    def test_brackets_of_a_special_token_are_no_class(self):
        assert with_literal_tokens(r"[INST] \d", ["[INST]"]) == r"\[INST\] \d"

    def test_checks_and_rewards_see_the_same_text(self, tokenizer):
        seen.clear()
        name = f"{__name__}:remember"
        judgement = judge(tokenizer, f"a{TURN}b{END}", f"a{END}", format_check=name, reward=name)
        assert seen == [f"a{TURN}b", "a"] * 2
        assert judgement.well_formed == [True, False]
        assert judgement.text == seen[:2]
        assert judgement.reward[0] > 0 > judgement.reward[1]


def stops_at(tokenizer, ids, stops, at_least=0) -> int | None:
    """After how many tokens a response ends by its text."""
    texts = StopTexts(tokenizer, stops)
    return next((n for n in range(1, len(ids) + 1) if texts.end(np.array(ids[:n]), at_least)), None)


class TestStopTexts:
    @pytest.mark.parametrize(
        ("stop", "written", "end"),
        [
            (TURN, f"ab{TURN}cd", 3),
            (TURN, "abcd", None),
            (TOOL, f"a{TOOL}b", 2),
            (f"b{TURN}", f"a{TURN}b{TURN}", 4),
            (f"{TURN}b", f"a{TURN}bc", 3),
            (f"{TURN}{TOOL}", f"a{TURN}{TOOL}c", 3),
            ("im_end", f"a{TURN}c", 2),
            ("ab1", "ab1c", 3),
        ],
    )
    def test_a_stop_text_may_hold_special_tokens(self, tokenizer, stop, written, end):
        assert stops_at(tokenizer, ids_of(written), (stop,)) == end

    def test_a_special_tokens_text_spelled_by_other_tokens_stops_too(self):
        tokenizer = make_chat_tokenizer("<|im_end>")
        ids = [2 + "<|im_end>".index(letter) for letter in TURN]
        assert stops_at(tokenizer, ids, (TURN,)) == len(TURN)

    def test_what_stands_among_the_fewest_tokens_ends_nothing(self, tokenizer):
        assert stops_at(tokenizer, ids_of(f"a{TURN}b{TURN}"), (TURN,), at_least=2) == 4

    @pytest.mark.parametrize(("stop", "end"), [("é", 3), ("aé", 3), ("éb", 4), ("\ufffd", None)])
    def test_a_character_of_several_tokens_counts_when_it_is_complete(self, stop, end):
        tokenizer = byte_tokenizer()
        assert stops_at(tokenizer, list("aéb".encode()), (stop,)) == end

    def test_the_local_sampler_stops_at_a_special_token(self, tokenizer, rng):
        model = PackedModel(make_causal_lm())
        requests = requests_for([Prompt(rng.integers(1, 40, 5)) for _ in range(4)], 20, seed=0, step=1)
        params = SamplingParams(max_response_tokens=24)
        sampler = LocalSampler(model, eos_ids=[END_ID], tokenizer=tokenizer)
        stopped = flatten(sampler.sample(requests, replace(params, stop=(TURN, f"b{TOOL}"))))
        for before, after in zip(flatten(sampler.sample(requests, params)), stopped, strict=True):
            text = spell(tokenizer, after.response_ids)
            assert before.response_ids[: len(after)].tolist() == after.response_ids.tolist()
            ends = text.endswith((TURN, f"b{TOOL}", END))
            assert after.finish_reason == ("stop" if ends else "length")
            assert TURN not in text.removesuffix(TURN)
        assert sum(trajectory.response_ids[-1] == TURN_ID for trajectory in stopped) > 5


def byte_tokenizer():
    """Every byte is a token, id and byte alike, as the last resort of byte-fallback tokenizers."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


class TestOtherEngines:
    def test_a_server_is_asked_to_look_at_special_tokens(self):
        body = request_body("policy", [1, 2], 3, SamplingParams(stop=(TURN,)), [END_ID])
        assert body["stop"] == [TURN]
        assert (body["skip_special_tokens"], body["spaces_between_special_tokens"]) == (False, False)
        assert body["stop_token_ids"] == [END_ID]

    def test_so_is_the_vllm_process(self, monkeypatch):
        """vllm replaced by classes that keep what they are given."""
        from fastflow.rollout.vllm import engine, messages

        class Given:
            def __init__(self, **options):
                self.__dict__.update(options)

        kinds = types.SimpleNamespace(FINAL_ONLY="final")
        monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(SamplingParams=Given))
        monkeypatch.setitem(sys.modules, "vllm.sampling_params", types.SimpleNamespace(RequestOutputKind=kinds))
        nothing = np.empty(0, dtype=np.int64)
        message = messages.Sample((), nothing, nothing, SamplingParams(stop=(TURN,)), (END_ID,), (), ())
        params = engine._sampling_params(message)
        assert (params.stop, params.stop_token_ids, params.detokenize) == ([TURN], [END_ID], True)
        assert (params.skip_special_tokens, params.spaces_between_special_tokens) == (False, False)


def test_a_whole_run_stops_matches_and_shows_special_tokens(tmp_path, capsys):
    """The inputs of the report: a special token that is not the model's end token, as stop text and as pattern."""
    model = save_model(tmp_path / "model")
    make_chat_tokenizer().save_pretrained(model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "ab"}\n')
    code = cli.main(
        ["train", f"--model.path={model}", "--model.device=cpu", f"--data.path={prompts}",
         "--objective.log_z=group_mean", "--rollout.max_response_tokens=40", "--batch.prompts_per_step=1",
         "--batch.responses_per_prompt=32", "--run.steps=1", f"--run.output={tmp_path / 'run'}",
         "--run.samples_per_dump=32", f'--rollout.stop=["{TURN}"]', f"--objective.format_pattern={re.escape(TURN)}"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    stopped = [sample for sample in samples if sample["tokens"][-1] == TURN]
    assert len(stopped) > 5
    for sample in samples:
        assert sample["well_formed"] == sample["response"].endswith(TURN) == (sample in stopped)
        assert TURN not in sample["tokens"][:-1]
        assert sample["response"] == "".join(sample["tokens"]).removesuffix(END)
    assert "&lt;|im_end|&gt;" in (tmp_path / "run" / "report.html").read_text()
