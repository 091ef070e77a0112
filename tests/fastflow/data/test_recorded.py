"""Recorded responses: what is read, where a response ends, and every record that is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastflow.config.schema import DataConfig
from fastflow.data import read_records
from fastflow.data.recorded import check_known, describe, read_recorded
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError

EOS = "<eos>"
FORMS = [
    {"prompt": "ab", "response": "cd"},
    {"prompt": "ab", "response": "cd", "finish_reason": "stop"},
    {"prompt": "ab", "response": "cd", "finish_reason": "length"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(list("abcdefgh"))


@pytest.fixture
def read(tmp_path, tokenizer):
    def read_lines(*records, limit: int = 8, **settings):
        file = tmp_path / "samples.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        data = DataConfig(path=str(file), **settings)
        return read_recorded(read_records(data), tokenizer, data, max_response_tokens=limit)

    return read_lines


@pytest.fixture
def read_ended(tmp_path, tokenizer):
    """Reads for a model that also ends with h."""

    def read_records_of(*records):
        lines = [(f"line {number}", record) for number, record in enumerate(records, start=1)]
        ends = tokenizer("h", add_special_tokens=False)["input_ids"]
        data = DataConfig(path="samples.jsonl")
        return read_recorded(lines, tokenizer, data, max_response_tokens=8, end_ids=ends)

    return read_records_of


@pytest.fixture
def refusal(read):
    def message(*records, **settings) -> str:
        with pytest.raises(FastflowError) as caught:
            read(*records, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


class TestEnds:
    def test_a_text_that_ended_gets_the_end_and_one_that_was_cut_does_not(self, read, tokenizer):
        (prompt,) = read(*FORMS)
        unsaid, ended, cut = prompt.responses
        assert unsaid.response_ids[-1] == ended.response_ids[-1] == tokenizer.eos_token_id
        assert unsaid.response_ids[:-1].tolist() == cut.response_ids.tolist()
        assert [entry.finish_reason for entry in prompt.responses] == ["stop", "stop", "length"]

    def test_an_end_that_stands_there_is_not_doubled(self, read, tokenizer):
        (prompt,) = read({"prompt": "ab", "response": "c" + tokenizer.eos_token})
        assert prompt.responses[0].response_ids.tolist().count(tokenizer.eos_token_id) == 1

    def test_tokens_are_taken_as_they_are(self, read, tokenizer):
        ids = tokenizer("cd", add_special_tokens=False)["input_ids"]
        ended = [*ids, tokenizer.eos_token_id]
        (prompt,) = read(*({"prompt": "ab", "response": "x", "response_ids": one} for one in (ids, ended)))
        assert [entry.response_ids.tolist() for entry in prompt.responses] == [ids, ended]
        assert [entry.finish_reason for entry in prompt.responses] == ["length", "stop"]

    def test_a_response_that_ended_and_was_cut(self, refusal, tokenizer):
        record = {"prompt": "ab", "response_ids": [3, tokenizer.eos_token_id], "finish_reason": "length"}
        assert "which says that it was cut" in refusal(record)

    def test_the_model_has_another_end_than_the_tokenizer(self, read_ended, tokenizer):
        other = tokenizer("h", add_special_tokens=False)["input_ids"][0]
        (prompt,) = read_ended({"prompt": "ab", "response_ids": [3, other]}, {"prompt": "ab", "response": "ch"})
        assert [entry.finish_reason for entry in prompt.responses] == ["stop", "stop"]
        assert [len(entry) for entry in prompt.responses] == [2, 2]
        with pytest.raises(FastflowError, match="ends with h, and its finish_reason is length"):
            read_ended({"prompt": "ab", "response": "ch", "finish_reason": "length"})


class TestBehindThePrompt:
    """A tokenizer of SentencePiece's kind: each text begins with a blank of its own."""

    @pytest.fixture(params=["always", "first", "never"])
    def blanks(self, request):
        model = models.BPE(
            {piece: number for number, piece in enumerate(["<unk>", "</s>", "\u2581", *"2+=48 ", "=4"])},
            [("=", "4")], unk_token="<unk>",
        )  # fmt: skip
        made = Tokenizer(model)
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param, split=False)
        made.decoder = decoders.Metaspace(prepend_scheme=request.param, split=False)
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")

    def spelt(self, tokenizer, **record):
        data = DataConfig(path="samples.jsonl")
        (prompt,) = read_recorded([("samples.jsonl:1", record)], tokenizer, data, max_response_tokens=8)
        return tokenizer.decode([*prompt.ids.tolist(), *prompt.responses[0].response_ids[:-1].tolist()])

    @pytest.mark.parametrize("response", ["8", " 8", "8 8"])
    def test_the_tokens_spell_prompt_and_response(self, blanks, response, caplog):
        with caplog.at_level(logging.WARNING, "fastflow"):
            assert self.spelt(blanks, prompt="2+2=", response=response) == "2+2=" + response
        assert not caplog.records

    def test_where_they_cannot_it_is_counted(self, blanks, caplog):
        """The tokenizer joins the prompt's last character with the response's first."""
        with caplog.at_level(logging.WARNING, "fastflow"):
            spelt = self.spelt(blanks, prompt="2+2=", response="4")
        told = "whose tokens spell another text behind their prompt: 1 of 1 (first: samples.jsonl:1: ' 4')"
        adds_no_blank = blanks("4", add_special_tokens=False)["input_ids"] == [blanks.convert_tokens_to_ids("4")]
        assert (spelt, told in caplog.text) == (("2+2=4", False) if adds_no_blank else ("2+2= 4", True))

    def test_a_prompt_in_tokens(self, blanks):
        ids = blanks("2+2=", add_special_tokens=False)["input_ids"]
        assert self.spelt(blanks, prompt="?", prompt_ids=ids, response="8") == "2+2=8"


def test_responses_are_gathered_by_prompt(read):
    first, second = read(
        {"prompt": "ab", "response": ["c", "d"], "weight": 2},
        {"prompt": "cd", "response": "e"},
        {"prompt": "ab", "response": "f", "weight": None},
    )
    assert (first.text, first.weights, second.weights) == ("ab", (2.0, 2.0, 1.0), (1.0,))
    assert first.source.endswith(":1")
    told = "4 recorded responses to 2 prompts, 1 to 3 each; each prompt has its turn 6 times, each time with "
    assert describe([first, second], prompts_per_step=4, steps=3, taken=1) == told + "1 response"
    again = "2 responses, so that some are taken more than once"
    assert describe([first, second], prompts_per_step=4, steps=3, taken=2) == told + again


def test_prompts_in_tokens(read):
    (prompt,) = read({"prompt": "whatever it says", "prompt_ids": [4, 5], "response": "c"})
    assert prompt.ids.tolist() == [4, 5] and prompt.text == "whatever it says"


def test_log_probs_are_unknown(read):
    (prompt,) = read(FORMS[0])
    assert np.isnan(prompt.responses[0].behaviour_logprobs).all()


class TestRefused:
    @pytest.mark.parametrize(
        ("record", "named"),
        [
            ({"prompt": "ab"}, "no field 'response' (data.response_field)"),
            ({"prompt": "ab", "response": []}, "holds no response"),
            ({"prompt": "ab", "response": None}, "must be a string or a list of strings, not NoneType"),
            ({"prompt": "ab", "response": [3]}, "not int"),
        ],
    )
    def test_no_response(self, record, named, refusal):
        assert named in refusal(FORMS[0], record) and "samples.jsonl:2" in refusal(FORMS[0], record)

    @pytest.mark.parametrize("more", [{}, {"response_ids": []}], ids=str)
    def test_an_empty_response(self, more, refusal):
        assert "the response is empty" in refusal({"prompt": "ab", "response": "", **more})

    def test_text_that_the_tokenizer_does_not_know(self, refusal):
        assert "text that the tokenizer does not know" in refusal({"prompt": "ab", "response": "cXd"})

    @pytest.mark.parametrize("ids", [[1.5], ["a"], [-1], [2**31], [True], "abc", 3], ids=str)
    def test_no_tokens(self, ids, refusal):
        assert "must be a list of token ids" in refusal({"prompt": "ab", "response": "c", "response_ids": ids})

    def test_tokens_of_another_model(self, read):
        prompts = read({"prompt": "ab", "response_ids": [3, 400]})
        with pytest.raises(FastflowError, match=r"samples\.jsonl:1.*token 400.*head has 40 rows"):
            check_known(prompts, 40)

    @pytest.mark.parametrize("weight", [-1, "much", True, float("inf")], ids=str)
    def test_no_weight(self, weight, refusal):
        assert "write a finite number that is not negative" in refusal({**FORMS[0], "weight": weight})

    def test_weights_that_are_all_zero(self, refusal):
        assert "have the weight 0" in refusal({**FORMS[0], "weight": 0})

    def test_another_finish_reason(self, refusal):
        assert "write stop or length" in refusal({**FORMS[0], "finish_reason": "eos"})

    def test_prompts_of_which_some_are_in_tokens(self, refusal):
        assert "give them to all or to none" in refusal({**FORMS[0], "prompt_ids": [3]}, FORMS[0])

    def test_an_instruction_beside_whole_prompts(self, refusal):
        assert "leave data.suffix out" in refusal({**FORMS[0], "prompt_ids": [3]}, suffix="x")


class TestOverlong:
    def test_a_response_over_the_limit_is_dropped_and_counted(self, read, caplog):
        with caplog.at_level(logging.WARNING):
            (prompt,) = read(FORMS[0], {"prompt": "ab", "response": "cccc"}, limit=4)
        assert len(prompt.responses) == 1
        assert "dropped 1 of 2 recorded responses over rollout.max_response_tokens = 4" in caplog.text

    def test_or_refused(self, refusal):
        assert "5 tokens, over rollout.max_response_tokens = 4" in refusal(
            {"prompt": "ab", "response": "cccc"}, limit=4, overlong="error"
        )

    def test_none_is_left(self, refusal):
        assert "every response" in refusal({"prompt": "ab", "response": "cccc"}, limit=2)

    def test_a_prompt_in_tokens(self, read, refusal):
        records = [{**FORMS[0], "prompt_ids": [3] * count} for count in (2, 9)]
        assert len(read(*records, max_prompt_tokens=8)) == 1
        assert "9 tokens, over data.max_prompt_tokens = 8" in refusal(*records, max_prompt_tokens=8, overlong="error")
