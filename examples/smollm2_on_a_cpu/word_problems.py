"""Writes word problems with one sum, difference or product: prompts to train on, and others to be measured on.

python examples/smollm2_on_a_cpu/word_problems.py DIRECTORY
"""

import argparse
import json
import random
from pathlib import Path

COUNTS = {"train": 400, "held_out": 48}
NAMES = ("Tom", "Anna", "Sam", "Mia", "Ben", "Lucy")
THINGS = ("apples", "books", "coins", "cards", "shells")


def problem(draw: random.Random) -> tuple[str, int]:
    """Draw a question and its answer."""
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    many, few = draw.randint(2, 60), draw.randint(2, 39)
    boxes, each = draw.randint(2, 9), draw.randint(2, 9)
    return draw.choice([
        (f"{name} has {many} {things} and gets {few} more. How many {things} does {name} have now?", many + few),
        (f"{name} has {many + few} {things} and gives away {few}. How many {things} are left?", many),
        (f"{name} buys {boxes} boxes with {each} {things} each. How many {things} does {name} have?", boxes * each),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    draw, seen = random.Random(0), set()
    for name, count in COUNTS.items():
        lines = []
        while len(lines) < count:
            question, answer = problem(draw)
            if question not in seen:
                seen.add(question)
                prompt = [{"role": "user", "content": question}]
                lines.append(json.dumps({"prompt": prompt, "answer": str(answer)}) + "\n")
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{count} problems are in {directory / name}.jsonl")


if __name__ == "__main__":
    main()
