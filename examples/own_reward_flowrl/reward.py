"""A reward for FlowRL: short answers without repetition."""


def score(response: str, record: dict) -> float:
    """Called with each response's text and the record of its prompt; any finite number will do.

    FlowRL normalises rewards among the responses to one prompt, so only differences count.
    """
    different = len(set(response)) / max(len(response), 1)
    return different - 0.02 * abs(len(response) - record["wanted_length"])
