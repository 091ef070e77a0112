"""The demo's corpora keep their stated shares, and its judges are right."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from fastflow.demo import stories, sums
from fastflow.demo.small_model import UNKNOWN, make_tokenizer
from fastflow.demo.tasks import STORIES, SUMS

SAMPLES = 3000
TASKS = {"sums": SUMS, "stories": STORIES}


@pytest.fixture(scope="module")
def corpora():
    """name -> (topic, prompt, response) of many samples."""
    made = {}
    for name, task in TASKS.items():
        rng = np.random.default_rng(7)
        topics, _ = task.topics(0, task.held_out)
        drawn = [topics[index] for index in rng.integers(len(topics), size=SAMPLES)]
        made[name] = [(topic, task.prompt(topic), task.respond(topic, rng)) for topic in drawn]
    return made


def near(share: float, expected: float) -> bool:
    """Within four standard errors of a share of SAMPLES draws."""
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / SAMPLES)


class TestTokenizer:
    @pytest.mark.parametrize("name", TASKS)
    def test_every_text_comes_back_and_has_no_unknown_token(self, corpora, name):
        tokenizer = make_tokenizer(TASKS[name].pieces)
        for _, prompt, response in corpora[name][:600]:
            for text in (prompt, response):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids, text
                assert tokenizer.decode(ids) == text

    @pytest.mark.parametrize("name", TASKS)
    def test_every_piece_is_used(self, corpora, name):
        """A piece that no text holds would be a row of the head that is never trained."""
        tokenizer = make_tokenizer(TASKS[name].pieces)
        used = {token for _, prompt, response in corpora[name] for token in tokenizer(prompt + response)["input_ids"]}
        assert set(tokenizer.convert_tokens_to_ids(list(TASKS[name].pieces))) <= used

    def test_the_longest_piece_wins(self):
        tokenizer = make_tokenizer(["a", "ab", "abc", "."])
        assert tokenizer.tokenize("abcab.a") == ["abc", "ab", ".", "a"]
        assert tokenizer.tokenize("ax") == ["a", UNKNOWN]

    @pytest.mark.parametrize(
        ("name", "longest"), [("sums", lambda text: sums.CHECK not in text), ("stories", lambda text: True)]
    )
    def test_all_but_the_loops_fit_the_demos_length_limit(self, corpora, name, longest):
        tokenizer = make_tokenizer(TASKS[name].pieces)
        lengths = [len(tokenizer(text)["input_ids"]) + 1 for _, _, text in corpora[name] if longest(text)]  # with <end>
        assert max(lengths) <= TASKS[name].max_response_tokens


@pytest.mark.parametrize("name", TASKS)
class TestTopics:
    def test_splits_are_disjoint_and_complete(self, name):
        task = TASKS[name]
        train, held_out = task.topics(0, 64)
        assert len(held_out) == 64
        assert not set(train) & set(held_out)
        everything = task.topics(0, 0)[0]
        assert len(everything) == len(set(everything)) == {"sums": 90 * 90, "stories": 16 * 12}[name]
        assert set(train) | set(held_out) == set(everything)

    def test_the_seed_decides_the_split(self, name):
        task = TASKS[name]
        assert task.topics(0, 64) == task.topics(0, 64)
        assert task.topics(0, 64)[1] != task.topics(1, 64)[1]

    def test_prompts_differ_between_topics(self, name):
        task = TASKS[name]
        topics, _ = task.topics(0, 0)
        assert len({task.prompt(topic) for topic in topics}) == len(topics)


def kind_of(response: str) -> str:
    if response.startswith("\\boxed"):
        return "guess"
    if sums.CHECK in response:
        return "loop"
    return "careful" if sums.is_boxed(response) else "boxless"


class TestSums:
    WORK = re.compile(
        r"(?P<opening>\w+) (?P<ones_a>\d)\+(?P<ones_b>\d)=(?P<ones>\d+)(?P<join>, [a-z ]*)"
        r"(?P<tens_a>\d)\+(?P<tens_b>\d)\+(?P<carry>\d)=(?P<tens>\d+)"
    )

    def test_shares_of_the_kinds(self, corpora):
        kinds = [kind_of(response) for _, _, response in corpora["sums"]]
        stated = {"careful": sums.CAREFUL, "guess": sums.GUESS, "loop": sums.LOOP, "boxless": sums.BOXLESS}
        assert sum(stated.values()) == pytest.approx(1)
        for kind, share in stated.items():
            assert near(kinds.count(kind) / SAMPLES, share), kind

    def test_a_bare_guess_is_the_likeliest_opening_but_care_is_the_larger_part(self, corpora):
        """What the demo is about: the best first token leads to guesses, the best sequences are careful."""
        tokenizer = make_tokenizer(sums.PIECES)
        first = [tokenizer.tokenize(response)[0] for _, _, response in corpora["sums"]]
        counts = {token: first.count(token) for token in set(first)}
        assert max(counts, key=counts.get) == "\\boxed{"
        assert all(counts[opening] < counts["\\boxed{"] for opening in sums.OPENINGS)
        assert sums.CAREFUL > sums.GUESS

    def test_work_names_the_digits_of_its_prompt(self, corpora):
        for (a, b), _, response in corpora["sums"]:
            if kind_of(response) == "guess":
                continue
            work = self.WORK.match(response)
            assert work is not None, response
            assert (work["ones_a"], work["ones_b"]) == (str(a % 10), str(b % 10))
            assert (work["tens_a"], work["tens_b"]) == (str(a // 10), str(b // 10))
            assert work["opening"] in sums.OPENINGS
            assert work["join"] in sums.JOINS

    def test_work_without_noise_is_right(self, monkeypatch):
        monkeypatch.setattr(sums, "DIGIT_NOISE", 0.0)
        rng = np.random.default_rng(0)
        careful = 0
        for pair in sums.all_pairs(0, 0)[0][:1500]:
            response = sums.write_response(pair, rng)
            if kind_of(response) == "careful":
                careful += 1
                assert sums.is_correct(response, pair), (pair, response)
            elif kind_of(response) == "boxless":
                assert response.endswith(str(sum(pair)))
            elif kind_of(response) == "loop":
                check = f"{sums.CHECK}{pair[0]}+{pair[1]}={sum(pair)}"
                assert 2 <= response.count(check) <= sums.MAX_CHECKS
                assert response.count(sums.CHECK) == response.count(check)
        assert careful > 600

    def test_care_is_mostly_right_with_noise_and_guesses_hardly_ever(self, corpora):
        correct = {"careful": [], "guess": [], "loop": [], "boxless": []}
        for pair, _, response in corpora["sums"]:
            correct[kind_of(response)].append(sums.is_correct(response, pair))
        assert 0.82 < np.mean(correct["careful"]) < 0.95  # two to four written digits, each wrong in 3.6 %
        assert np.mean(correct["guess"]) < 0.03
        assert not any(correct["loop"])
        assert not any(correct["boxless"])

    @pytest.mark.parametrize(
        ("response", "correct"),
        [
            (r"\boxed{46}", True),
            (r"\boxed{47}", False),
            (r"\boxed{1} so \boxed{46}", True),
            (r"\boxed{46} so \boxed{1}", False),  # the last box counts
            ("46", False),
            (r"\boxed{}", False),
            (r"\boxed{46", False),
            (r"\boxed{046}", True),
            ("", False),
        ],
    )
    def test_is_correct(self, response, correct):
        assert sums.is_correct(response, (12, 34)) is correct

    @pytest.mark.parametrize(
        ("response", "boxed"), [(r"so \boxed{4}", True), (r"\boxed{", False), (r"\boxed{}", False), ("4", False)]
    )
    def test_is_boxed(self, response, boxed):
        assert sums.is_boxed(response) is boxed


RECORD = {"topic": ["mia", "harbour"]}


class TestStories:
    LINE = " in the harbour mia met a brave fox who carried the lantern home ."

    def test_the_valid_share(self, corpora):
        valid = [stories.is_valid(text, {"topic": list(topic)}) for topic, _, text in corpora["stories"]]
        swapped_alike = 1 / math.comb(14, 2)  # exchanging the two "the" changes nothing
        assert near(np.mean(valid), 1 - stories.UNGRAMMATICAL * (1 - swapped_alike))

    def test_shares_of_the_fillings(self, corpora):
        assert sum(stories.FILLING_SHARES) == pytest.approx(1)
        for slot in stories.SLOTS:
            for word, share in zip(slot, stories.FILLING_SHARES, strict=True):
                count = sum(f" {word} " in f"{text} " for _, _, text in corpora["stories"])
                assert near(count / SAMPLES, share), word

    def test_words_belong_to_one_slot_only(self):
        words = [*stories.NAMES, *stories.PLACES, *(word for slot in stories.SLOTS for word in slot)]
        assert len(words) == len(set(words))

    def test_a_valid_line(self):
        assert stories.is_valid(self.LINE, RECORD)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("mia", "tom"),  # another name
            ("harbour", "forest"),  # another place
            ("brave fox", "fox brave"),
            ("brave", "carried"),
            (" .", ""),
            (" in", "in"),
            ("home .", "home . home ."),
            (" who carried", " carried who"),
            ("lantern", "lanterns"),
            ("the lantern", "the the lantern"),
        ],
    )
    def test_a_broken_line(self, old, new):
        assert old in self.LINE
        assert not stories.is_valid(self.LINE.replace(old, new), RECORD)

    def test_nothing_is_no_story(self):
        assert not stories.is_valid("", RECORD)
