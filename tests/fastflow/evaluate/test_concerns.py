"""Scores that tell more of the grader than of the model are named, with what to do."""

from fastflow.evaluate.concerns import concerns


def results(*, unparsed=0, wrong=0, truncated=0.0, grader="math", kind="graded", chat=False):
    verdicts = {"right": 1, "wrong": wrong, "unparsed": unparsed, "timed_out": 0}
    scores = {"verdicts": verdicts, "truncated": {"value": truncated, "error": None}}
    task = {"name": "sums", "kind": kind, "grader": grader, "models": [{"name": "base", "scores": scores}]}
    return {"settings": {"chat_template": chat}, "tasks": [task]}


def test_most_responses_without_an_answer():
    (said,) = concerns(results(unparsed=9), own={"sums"})
    assert said.startswith("sums: 9 of 10 responses of base have no answer that the grader math reads, so they cannot")
    assert "say in the prompt how to give the answer" in said and "numeric" in said and "max_tokens" not in said


def test_the_remedies_are_those_of_the_case():
    (said,) = concerns(results(unparsed=9, truncated=0.8, grader="choice"), own={"sums"})
    assert "raise --max_tokens, since most responses are cut off, or give --chat_template true" in said
    assert "numeric" not in said
    (said,) = concerns(results(unparsed=9), own=())
    assert said.endswith("; give --chat_template true if it is a chat model")
    (said,) = concerns(results(unparsed=9, chat=True), own=())
    assert said.endswith("; look at the responses in report.html")


def test_a_few_are_the_models_own_affair():
    assert concerns(results(unparsed=5, wrong=4), own=()) == []
    assert concerns(results(unparsed=9, kind="creative"), own=()) == []
