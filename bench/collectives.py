"""Watches the collectives of torch.distributed: what is called, and with which tensors."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def watched(names: Collection[str], note: Callable[..., None]) -> Iterator[None]:
    """Call `note(name, *arguments, **options)` before each call of these collectives, as far as this torch has them."""
    originals = {name: getattr(dist, name) for name in names if hasattr(dist, name)}

    def noting(name: str) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            note(name, *arguments, **options)
            return originals[name](*arguments, **options)

        return noted

    for name in originals:
        setattr(dist, name, noting(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
