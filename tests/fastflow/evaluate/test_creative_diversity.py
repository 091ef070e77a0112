"""Measures of diversity: equal to brute force and to the known libraries, within bounds, whatever the order."""

import gzip
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.evaluate.creative.bleu import self_bleu
from fastflow.evaluate.creative.diversity import CONVENTIONS, measure
from fastflow.evaluate.creative.lexical import compression_ratio, distinct_n, vocabulary
from fastflow.evaluate.creative.rouge import rouge_l_redundancy
from fastflow.evaluate.creative.semantic import semantic_diversity
from fastflow.evaluate.creative.words import ngrams, words

SMALL = st.lists(st.sampled_from("abcd"), max_size=9).map(tuple)
SEVERAL = st.lists(SMALL, min_size=2, max_size=6)
TEXTS = st.lists(st.text(alphabet="ab C.,é詩\n", max_size=30), min_size=2, max_size=6)
VECTORS = st.integers(2, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-3, 3, allow_nan=False, width=32), min_size=3, max_size=3), min_size=n, max_size=n
    )
)


def table_lcs(first, second):
    """The textbook's table."""
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def plain_bleu(hypothesis, references):
    """BLEU-4 written down again, with counts by scanning."""
    if not hypothesis:
        return float(any(not reference for reference in references))
    logs, misses = [], 0
    for n in range(1, min(4, len(hypothesis)) + 1):
        own = ngrams(hypothesis, n)
        matched = sum(
            min(own.count(gram), max(ngrams(reference, n).count(gram) for reference in references)) for gram in set(own)
        )
        if n == 1 and not matched:
            return 0.0
        misses += not matched
        logs.append(math.log(matched / len(own)) if matched else -math.log(len(own)) - misses * math.log(2))
    nearest = sorted((abs(len(reference) - len(hypothesis)), len(reference)) for reference in references)[0][1]
    brevity = 1.0 if len(hypothesis) >= nearest else math.exp(1 - nearest / len(hypothesis))
    return brevity * math.exp(sum(logs) / len(logs))


class TestWords:
    def test_letters_and_digits_in_lower_case(self):
        assert words("The cat's 3 hats -- HATS_on!\n") == ("the", "cat", "s", "3", "hats", "hats", "on")
        assert words("Été à Köln") == ("été", "à", "köln")
        assert words("E\u0301te\u0301 a\u0300 Ko\u0308ln") == ("été", "à", "köln")

    def test_vowel_signs_belong_to_their_word(self):
        assert words("की का के, क्षत्रिय!") == ("की", "का", "के", "क्षत्रिय")
        assert words("مَدْرَسَة مُدَرِّسَة") == ("مَدْرَسَة", "مُدَرِّسَة")
        assert len(words("நான் தமிழ்")) == 2 and words("می\u200cخواهم") == ("می\u200cخواهم",)

    def test_scripts_without_blanks_are_cut_at_each_character(self):
        assert words("สวัสดี") == ("ส", "วั", "ส", "ดี")
        assert words("古池や frog 蛙") == ("古", "池", "や", "frog", "蛙")

    def test_nothing(self):
        assert words(" .\n\u0301 ❤\ufe0f") == () and ngrams((), 1) == [] and ngrams(("a",), 2) == []


class TestRouge:
    def test_long_texts_need_more_than_a_machine_word(self):
        random = np.random.default_rng(0)
        first, second = (tuple(random.choice(list("abcdef"), 400)) for _ in range(2))
        assert rouge_l_redundancy([first, second]) == 2 * table_lcs(first, second) / 800

    @given(SEVERAL)
    def test_redundancy_is_the_mean_of_pairs(self, responses):
        scores = []
        for first, second in combinations(responses, 2):
            common = table_lcs(first, second)
            if not first and not second:
                scores.append(1.0)
            elif not common:
                scores.append(0.0)
            else:
                precision, recall = common / len(first), common / len(second)
                scores.append(2 * precision * recall / (precision + recall))
        assert rouge_l_redundancy(responses) == pytest.approx(np.mean(scores))

    def test_a_known_pair(self):  # police [killed] the gunman: LCS 3 of 4 and 4
        pair = [words("police killed the gunman"), words("police kill the gunman")]
        assert rouge_l_redundancy(pair) == 0.75

    def test_as_the_rouge_score_package(self):
        scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
        texts = ["A cat sat on the mat.", "The mat was where a cat, a fat cat, sat!", "Dogs bark", "Dogs do not"]
        expected = [scorer.score(*pair)["rougeL"].fmeasure for pair in combinations(texts, 2)]
        assert rouge_l_redundancy([words(text) for text in texts]) == pytest.approx(np.mean(expected))


class TestSelfBleu:
    @given(SEVERAL)
    @settings(deadline=None)
    def test_each_against_all_others(self, responses):
        expected = [
            plain_bleu(response, responses[:place] + responses[place + 1 :]) for place, response in enumerate(responses)
        ]
        assert self_bleu(responses) == pytest.approx(np.mean(expected))

    @given(SEVERAL)
    @settings(deadline=None, max_examples=50)
    def test_as_sacrebleu(self, responses):
        bleu = pytest.importorskip("sacrebleu").BLEU(effective_order=True, tokenize="none", smooth_method="exp")
        texts = [" ".join(response) for response in responses]
        if not all(texts):
            return  # sacrebleu has no word for two empty ones
        expected = [
            bleu.sentence_score(text, texts[:place] + texts[place + 1 :]).score / 100
            for place, text in enumerate(texts)
        ]
        assert self_bleu(responses) == pytest.approx(np.mean(expected), abs=1e-9)

    def test_one_word_and_none(self):
        assert self_bleu([("a",), ("a",)]) == 1
        assert self_bleu([("a",), ("b",)]) == 0
        assert self_bleu([(), ()]) == 1
        assert self_bleu([(), ("a",)]) == 0


class TestCounts:
    @given(SEVERAL, st.integers(1, 3))
    def test_distinct_n(self, responses, n):
        every = Counter(response[at : at + n] for response in responses for at in range(len(response) - n + 1))
        assert distinct_n(responses, n) == (len(every) / every.total() if every else 0)

    def test_vocabulary(self):
        assert vocabulary([("a", "b"), ("b", "c"), ()]) == 3

    def test_compression_is_near_that_of_gzip(self):
        texts = ["the moon is a stone", "the stone is a moon", "nobody knows the sea"] * 5
        data = "\n".join(sorted(texts)).encode()
        headers = 18  # of gzip: 10 in front, 8 behind
        assert compression_ratio(texts) == pytest.approx(len(data) / (len(gzip.compress(data, 9)) - headers))

    def test_repeating_is_compressed_better(self):
        random = np.random.default_rng(1)
        varied = ["".join(random.choice(list("abcdefghij "), 200)) for _ in range(8)]
        assert compression_ratio([varied[0]] * 8) > 3 * compression_ratio(varied)

    def test_nothing_to_compress(self):
        assert compression_ratio(["", ""]) == 1 and compression_ratio(["", "\n"]) == 1


class TestSemantic:
    @given(VECTORS)
    def test_the_mean_of_pairs(self, rows):
        def cosine(one, other):
            lengths = [math.sqrt(sum(x * x for x in vector)) for vector in (one, other)]
            if not all(lengths):
                return float(not any(lengths))
            return sum((x / lengths[0]) * (y / lengths[1]) for x, y in zip(one, other, strict=True))

        vectors = np.array(rows)
        cosines = [cosine(*pair) for pair in combinations(rows, 2)]
        assert semantic_diversity(vectors) == pytest.approx(1 - np.mean(cosines), abs=1e-9)
        clipped = [1 - max(value, 0) for value in cosines]
        assert semantic_diversity(vectors, clip=True) == pytest.approx(np.mean(clipped), abs=1e-9)

    @given(VECTORS)
    def test_bounds(self, rows):
        vectors = np.array(rows)
        assert 0 <= semantic_diversity(vectors) <= 2
        assert 0 <= semantic_diversity(vectors, clip=True) <= 1

    def test_equal_opposite_and_right_angles(self):
        axes = np.eye(2)
        assert semantic_diversity(np.stack([axes[0], 5 * axes[0]])) == 0
        assert semantic_diversity(np.stack([axes[0], -axes[0]])) == 2
        assert semantic_diversity(axes) == 1
        assert semantic_diversity(np.zeros((2, 3))) == 0


class TestAll:
    @given(TEXTS, st.randoms(use_true_random=False))
    @settings(deadline=None)
    def test_the_order_of_responses_does_not_count_and_bounds_hold(self, texts, random):
        vectors = np.array([[len(text), text.count("a"), 1] for text in texts], dtype=np.float32)
        order = list(range(len(texts)))
        random.shuffle(order)
        found, again = measure(texts, vectors), measure([texts[at] for at in order], vectors[order])
        assert found.keys() == CONVENTIONS.keys()
        assert found == pytest.approx(again, abs=1e-12)
        assert all(0 <= found[name] <= 1 for name in ("rouge_l", "distinct_1", "distinct_2", "semantic_clipped"))
        assert 0 <= found["self_bleu"] <= 1 + 1e-12 and found["compression"] > 0

    @given(st.text(max_size=20), st.integers(2, 5))
    @settings(deadline=None)
    def test_equal_responses_are_redundant(self, text, count):
        found = measure([text] * count)
        assert found["rouge_l"] == 1 and found["self_bleu"] == pytest.approx(1)
        assert "semantic" not in found

    def test_a_single_response_has_no_pairs(self):
        for function in (rouge_l_redundancy, self_bleu):
            with pytest.raises(ValueError, match="at least 2"):
                function([("a",)])
        with pytest.raises(ValueError, match="at least 2"):
            semantic_diversity(np.ones((1, 2)))
