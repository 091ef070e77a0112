"""A judge on loopback: votes, retries, limits, refusals, a key that nobody sees, and replies that are kept."""

import json
import time
from pathlib import Path

import pytest

from fake_judge import FakeJudge, texts_in
from fastflow.errors import FastflowError
from fastflow.evaluate.creative.judge import Ask, JudgeModel
from fastflow.evaluate.creative.judging import compare_pairs, grade_quality, rate_solutions
from fastflow.evaluate.creative.reply_log import ReplyLog
from fastflow.evaluate.creative.rubric import Criterion, Rubric, find_rubric
from fastflow.evaluate.creative.settings import KEY_VARIABLE, JudgeConfig

pytest.importorskip("httpx")
RUBRIC = Rubric("test", "a text", 1, 5, (Criterion("wit", 3, "Witty?"), Criterion("form", 1, "Well formed?")))


@pytest.fixture
def judges(monkeypatch):
    """Starts fake judges; ends them with the test. Pauses between tries are short."""
    from fastflow.rollout.server.http import Backoff

    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.01)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    started = []

    def start(say, **more):
        started.append(FakeJudge(say, **more))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


def settings(fake, **more):
    return JudgeConfig(**{"address": fake.address, "attempts": 3, "timeout": 60.0, **more})


def rows_of(prompts):
    """{prompt: responses} as rows; a response that starts with "right" has that verdict."""
    return [
        [{"question": index, "sample": sample, "prompt": prompt, "response": response,
          "verdict": "right" if response.startswith("right") else "wrong"}
         for sample, response in enumerate(responses)]
        for index, (prompt, responses) in enumerate(prompts.items())
    ]  # fmt: skip


def by_length(messages):
    """Grades a text by its number of words."""
    count = len(texts_in(messages)["text"].split())
    return json.dumps({"wit": count, "form": 1})


def test_quality_is_the_weighted_mean_on_a_scale_from_0_to_1(judges, tmp_path):
    fake = judges(by_length)
    rows = rows_of({"p": ["a", "a b c"], "q": ["a b c d e"], "r": ["a b c d e f"]})  # the last is off the scale
    found = grade_quality(JudgeModel(settings(fake)), RUBRIC, rows, ReplyLog(tmp_path / "replies.jsonl"))
    # wit weighs 3/4: (0.75 * wit + 0.25 * 1 - 1) / 4
    assert found.quality == [pytest.approx((0 + 0.375) / 2), pytest.approx(0.75), None]
    assert found.criteria["wit"] == [2.0, 5.0, None]
    assert found.cost.ungraded == 1 and found.cost.requests == 5  # the last was asked once more
    assert fake.bodies[0]["model"] == "referee" and fake.bodies[0]["temperature"] == 0
    reminded = [body for body in fake.bodies if len(body["messages"]) == 4]
    assert len(reminded) == 1 and reminded[0]["messages"][2]["role"] == "assistant"


def test_votes_are_asked_apart_and_averaged(judges, tmp_path):
    fake = judges(lambda messages: '{"wit": 3, "form": 3}')
    real = fake.answer

    def by_vote(path, body, authorization):
        fake.say = lambda messages: json.dumps({"wit": 1 + body["seed"], "form": 1})
        return real(path, body, authorization)

    fake.answer = by_vote
    judge = JudgeModel(settings(fake, votes=3, temperature=0.7, concurrency=1))
    found = grade_quality(judge, RUBRIC, rows_of({"p": ["a"]}), ReplyLog(tmp_path / "replies.jsonl"))
    assert found.criteria["wit"] == [2.0] and sorted(body["seed"] for body in fake.bodies) == [0, 1, 2]


def test_replies_are_kept_and_nothing_is_asked_twice(judges, tmp_path):
    fake, file = judges(by_length), tmp_path / "replies.jsonl"
    rows = rows_of({"p": ["a", "b c"], "q": ["d e f"]})
    judge = JudgeModel(settings(fake))
    first = grade_quality(judge, RUBRIC, rows, ReplyLog(file))
    assert first.cost.new == 3 and len(fake.bodies) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["question"], line["sample"], line["vote"]) for line in lines} == {(0, 0, 0), (0, 1, 0), (1, 0, 0)}
    assert all(json.loads(line["text"]) == line["grades"] for line in lines)
    again = grade_quality(judge, RUBRIC, rows, ReplyLog(file))
    assert len(fake.bodies) == 3 and again.cost.new == 0
    assert again.quality == first.quality and again.cost.as_json() == first.cost.as_json()
    assert first.cost.prompt_tokens > 0 and first.cost.completion_tokens == 12  # 4 words each
    grade_quality(JudgeModel(settings(fake, max_tokens=7)), RUBRIC, rows, ReplyLog(file))
    assert len(fake.bodies) == 6  # another setting is another question


def test_more_fields_reach_the_server(judges, tmp_path):
    fake = judges(by_length)
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    grade_quality(
        JudgeModel(settings(fake, extra=extra)), RUBRIC, rows_of({"p": ["a"]}), ReplyLog(tmp_path / "r.jsonl")
    )
    assert fake.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(FastflowError, match=r"judge\.extra sets seed.*each vote has its own"):
        settings(fake, extra={"seed": 3})


def test_after_a_kill_within_a_line_the_rest_is_asked(judges, tmp_path):
    fake, file = judges(by_length), tmp_path / "replies.jsonl"
    rows = rows_of({"p": ["a", "b c", "d e f"]})
    judge = JudgeModel(settings(fake))
    whole = grade_quality(judge, RUBRIC, rows, ReplyLog(file))
    content = file.read_bytes()
    file.write_bytes(content[: content.rfind(b"\n", 0, -1) + 20])
    assert len(ReplyLog(file)) == 2
    assert grade_quality(judge, RUBRIC, rows, ReplyLog(file)).quality == whole.quality
    assert len(fake.bodies) == 4
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()]


def test_a_failing_server_is_asked_again_and_what_it_said_is_kept(judges, tmp_path):
    tries, file = [], tmp_path / "replies.jsonl"

    def moody(messages):
        tries.append(messages)
        return [(503, "loading"), None, by_length(messages)][(len(tries) - 1) % 3]

    fake = judges(moody, after=0)
    judge = JudgeModel(settings(fake, concurrency=1))
    assert grade_quality(judge, RUBRIC, rows_of({"p": ["a"], "q": ["b c"]}), ReplyLog(file)).quality[1] == 0.1875
    assert len(tries) == 6
    fake.say = lambda messages: (500, "out of memory") if "late" in messages[1]["content"] else by_length(messages)
    rows = rows_of({"p": ["early"], "q": ["late one"]})
    with pytest.raises(FastflowError, match=r"500: out of memory, 3 times; .* the same command goes on"):
        grade_quality(judge, RUBRIC, rows, ReplyLog(file))
    fake.say = by_length
    assert grade_quality(judge, RUBRIC, rows, ReplyLog(file)).cost.new == 1


def test_a_silent_server_costs_its_time_limit(judges, tmp_path):
    fake = judges(by_length, pause=30.0)
    started = time.monotonic()
    with pytest.raises(FastflowError, match=r"no answer within judge.timeout = 0.2 s, 2 times"):
        grade_quality(
            JudgeModel(settings(fake, model="m", timeout=0.2, attempts=2)), RUBRIC, rows_of({"p": ["a"]}),
            ReplyLog(tmp_path / "replies.jsonl"),
        )  # fmt: skip
    assert time.monotonic() - started < 25


def test_one_refused_request_is_ungraded_and_all_refused_are_an_error(judges, tmp_path):
    def narrow(messages):
        return (400, "too long") if len(messages[1]["content"]) > 100 else by_length(messages)

    fake = judges(narrow)
    rows = rows_of({"p": ["a b"], "q": ["x" * 200]})
    found = grade_quality(JudgeModel(settings(fake)), RUBRIC, rows, ReplyLog(tmp_path / "some.jsonl"))
    assert found.quality == [0.1875, None] and found.cost.ungraded == 1
    many = rows_of({f"p{number}": ["x" * 200] for number in range(60)})
    fake.bodies.clear()
    with pytest.raises(FastflowError, match=r"refused \d+ requests and answered none.* too long"):
        grade_quality(JudgeModel(settings(fake, concurrency=4)), RUBRIC, many, ReplyLog(tmp_path / "none.jsonl"))
    assert len(fake.bodies) < 30  # it does not try them all


def test_requests_go_out_together_and_not_more_than_the_setting(judges, tmp_path):
    fake = judges(by_length, pause=0.05)
    rows = rows_of({"p": [f"a b {number}" for number in range(12)]})
    grade_quality(JudgeModel(settings(fake, concurrency=3)), RUBRIC, rows, ReplyLog(tmp_path / "replies.jsonl"))
    assert 1 < fake.most_at_once <= 3


SECRET = "sk-secret-1234"


class TestKey:
    def test_it_comes_from_the_environment_and_is_written_nowhere(self, judges, tmp_path, monkeypatch):
        monkeypatch.setenv(KEY_VARIABLE, SECRET)
        fake = judges(lambda messages: f'{{"wit": 2, "form": 2, "note": "{SECRET}"}}', key=SECRET)
        file = tmp_path / "replies.jsonl"
        found = grade_quality(JudgeModel(settings(fake)), RUBRIC, rows_of({"p": ["a"]}), ReplyLog(file))
        assert found.quality == [0.25]
        assert SECRET not in file.read_text() and SECRET not in repr(settings(fake))

    def test_a_wrong_one_is_an_error_that_does_not_show_it(self, judges, monkeypatch):
        monkeypatch.setenv(KEY_VARIABLE, SECRET)
        fake = judges(by_length, key="another")
        with pytest.raises(FastflowError, match=KEY_VARIABLE) as caught:
            JudgeModel(settings(fake))
        assert SECRET not in str(caught.value)

    def test_one_that_no_header_takes(self, judges, monkeypatch):
        monkeypatch.setenv(KEY_VARIABLE, "a\nb")
        with pytest.raises(FastflowError, match="set it anew"):
            JudgeModel(settings(judges(by_length)))


class TestPairs:
    def compare(self, fake, tmp_path, ours, theirs, pairs=8):
        judge = JudgeModel(settings(fake, pairs=pairs))
        return compare_pairs(judge, RUBRIC, rows_of(ours), rows_of(theirs), ReplyLog(tmp_path / "pairs.jsonl"))

    def test_the_longer_text_wins_in_both_orders(self, judges, tmp_path):
        def longer(messages):
            first, second = (len(texts_in(messages)[name]) for name in ("first", "second"))
            return json.dumps({"better": "tie" if first == second else "first" if first > second else "second"})

        ours = {"p": ["aaa", "bbb"], "q": ["a", "c"]}
        theirs = {"p": ["a", "bb"], "q": ["bb", "d"]}
        found = self.compare(judges(longer), tmp_path, ours, theirs)
        assert found.win_rate == [1.0, 0.25] and found.contradicted == 0 and found.first_preferred == 0.5

    def test_a_judge_that_likes_the_first_place_decides_nothing(self, judges, tmp_path):
        fake = judges(lambda messages: '{"better": "first"}')
        found = self.compare(fake, tmp_path, {"p": ["a", "b", "c"]}, {"p": ["d", "e", "f"]}, pairs=2)
        assert found.win_rate == [0.5] and found.contradicted == 1 and found.first_preferred == 1
        assert len(fake.bodies) == 4

    def test_a_pair_with_one_readable_order_does_not_count(self, judges, tmp_path):
        fake = judges(lambda messages: '{"better": "first"}' if texts_in(messages)["first"] == "a" else "hm")
        found = self.compare(fake, tmp_path, {"p": ["a"]}, {"p": ["b"]})
        assert found.win_rate == [None] and found.cost.ungraded == 1


def test_the_variety_of_right_solutions(judges, tmp_path):
    def count(messages):
        texts = texts_in(messages)
        return json.dumps({"variety": len(set(texts.values())) - 1})

    fake = judges(count)
    rows = rows_of(
        {"p": ["right 1", "wrong", "right 2", "right 3"], "q": ["right 1", "wrong"], "r": ["right", "right"]}
    )
    found = rate_solutions(
        JudgeModel(settings(fake, solutions=2)), rows, "right", ReplyLog(tmp_path / "solutions.jsonl")
    )
    assert found.rating == [2.0, None, 1.0] and len(fake.bodies) == 2
    assert "wrong" not in json.dumps([texts_in(body["messages"]) for body in fake.bodies])


def test_the_only_model_is_asked_from_the_server(judges):
    assert JudgeModel(settings(judges(by_length))).model == "referee"
    assert JudgeModel(settings(judges(by_length, models=("a", "b")), model="b")).model == "b"
    with pytest.raises(FastflowError, match="2 models"):
        JudgeModel(settings(judges(by_length, models=("a", "b"))))


def test_what_is_no_judge_at_all(judges):
    fake = judges(by_length)
    with pytest.raises(FastflowError, match=r"404: not here; check judge\.address"):
        JudgeModel(JudgeConfig(address=fake.address.removesuffix("/v1") + "/v2"))
    fake.close()
    with pytest.raises(FastflowError, match="does not answer"):
        JudgeModel(settings(fake))


def test_an_interrupt_keeps_what_was_said(judges, tmp_path):
    fake, file = judges(by_length), tmp_path / "replies.jsonl"
    told = []

    def interrupt():
        told.append(1)
        if len(told) == 3:
            raise KeyboardInterrupt

    asks = [Ask(ask_messages(text), lambda reply: reply) for text in "abcdef"]
    judge = JudgeModel(settings(fake, concurrency=1))
    with pytest.raises(KeyboardInterrupt):
        judge.ask(asks, ReplyLog(file), interrupt)
    assert len(ReplyLog(file)) == 3
    values, cost = judge.ask(asks, ReplyLog(file))
    assert len(fake.bodies) == 6 and cost.new == 3 and all(values)


def ask_messages(text):
    from fastflow.evaluate.creative.questions import grade_one

    return grade_one(RUBRIC, "p", text)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"address": "localhost:8000"}, "is no address"),
        ({"address": "http://me:word@host/v1"}, KEY_VARIABLE),
        ({"address": "http://h/v1", "votes": 3}, "3 equal votes"),
        ({"address": "http://h/v1", "solutions": 1}, "nothing to compare"),
        ({"pairs": 2}, "judge.address is not"),
        ({"solutions": 4}, "judge.address is not"),
        ({"rubric": "poem"}, "judge.rubric is set but judge.address is not"),
        ({"votes": 3, "temperature": 0.7}, "judge.votes is set but judge.address is not"),
        ({"address": "http://h/v1", "timeout": 0.0}, "judge.timeout"),
    ],
)
def test_settings_that_contradict_each_other(entries, complaint):
    with pytest.raises(FastflowError, match=complaint):
        JudgeConfig(**entries)


class TestRubrics:
    def test_the_jokes_weights_are_the_papers(self):
        weights = {criterion.name: criterion.weight for criterion in find_rubric("joke").criteria}
        assert weights == {"funniness": 0.40, "cleverness": 0.25, "originality": 0.20, "structure": 0.15}

    @pytest.mark.parametrize("name", ["joke", "poem", "story"])
    def test_all_that_come_along(self, name):
        rubric = find_rubric(name)
        assert sum(criterion.weight for criterion in rubric.criteria) == pytest.approx(1)
        for grade, quality in ((rubric.lowest, 0), (rubric.highest, 1)):
            assert rubric.quality(dict.fromkeys(rubric.names, grade)) == pytest.approx(quality)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("- a", "is no rubric"),
            ("subjects: x", "unknown entry subjects: did you mean subject"),
            ("subject: x\nscale: [5, 1]\ncriteria: {a: {weight: 1, question: b}}", "not below the highest"),
            ("subject: x\nscale: 5\ncriteria: {a: {weight: 1, question: b}}", "scale is 5"),
            ("subject: x\nscale: [1, 5]\ncriteria: {}", "at least one criterion"),
            ("subject: x\nscale: [1, 5]\ncriteria: {a: {weight: 0, question: b}}", "weight of a is 0"),
            ("subject: x\nscale: [1, 5]\ncriteria: {a: {weight: 1}}", "must hold weight and question"),
            ("subject: [x", "cannot read the rubric"),
        ],
    )
    def test_what_is_none(self, tmp_path, text, complaint):
        file: Path = tmp_path / "mine.yaml"
        file.write_text(text)
        with pytest.raises(FastflowError, match=complaint):
            find_rubric(str(file))

    def test_unknown_names(self):
        with pytest.raises(FastflowError, match="did you mean poem"):
            find_rubric("poems")
        with pytest.raises(FastflowError, match="cannot read the rubric"):
            find_rubric("absent.yaml")
