"""Sizes of a head and its batch, and those that are measured when the command line names none."""

from typing import NamedTuple

OP_NAMES = ("flow_loss", "linear_logprob", "logprob")


class Shape(NamedTuple):
    """rows N x width D x vocabulary V.

    >>> Shape.parse("2048x512x32000").products
    33554432000
    """

    rows: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return "x".join(str(size) for size in self)

    @property
    def products(self) -> int:
        """N D V: multiply-adds of one pass over the vocabulary."""
        return self.rows * self.width * self.vocabulary

    @classmethod
    def parse(cls, text: str) -> "Shape":
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"{text!r} is not rows x width x vocabulary, such as 2048x512x32000")
        return cls(*(int(part) for part in parts))


# Heads of Qwen2.5-1.5B, Qwen2.5-7B, Llama-3-8B and TinyLlama; on the CPU, what two cores finish in minutes.
SHAPES = {
    "cuda": (
        Shape(16384, 1536, 151936),
        Shape(8192, 3584, 152064),
        Shape(8192, 4096, 128256),
        Shape(4096, 2048, 32000),
    ),
    "cpu": (Shape(2048, 512, 32000), Shape(256, 1024, 152064)),
}
QUICK_SHAPES = {"cuda": (Shape(2048, 1024, 32000),), "cpu": (Shape(512, 256, 8000),)}
DTYPES = {"cuda": ("bfloat16",), "cpu": ("float32", "bfloat16")}


class Group(NamedTuple):
    """What is compared with each other: one op on one shape in one type, at one deviation of the logits."""

    op: str
    shape: Shape
    dtype: str
    device: str
    deviation: float = 1.0

    def __str__(self) -> str:
        peaked = "" if self.deviation == 1 else f", logits of deviation {self.deviation:g}"
        return f"{self.op} {self.shape} {self.dtype} {self.device}{peaked}"
