"""The row of a provider: everything that the tables, the plot, JSON and CSV say about it."""

from bench.limits import Limit
from bench.ops import bytes_returned
from bench.providers.provider import Provider
from bench.shapes import Group
from bench.timing import summarise


def new_row(provider: Provider, group: Group) -> dict:
    """Nothing measured yet. Times in seconds, memory in bytes; `error` is that of errors.py, or None."""
    multiple = provider.flops[group.op]
    return {
        "provider": provider.name,
        "is_ours": provider.is_ours,
        "has_answer": provider.has_answer,
        "op": group.op,
        "dtype": group.dtype,
        "device": group.device,
        "shape": str(group.shape),
        "deviation": group.deviation,  # of the logits
        "status": "skipped: not reached",  # "ok", "skipped: why" or "failed: why"
        "median_s": None,
        "quartiles_s": None,
        "fastest_s": None,
        "calls": 0,
        "limit_s": None,
        "ratio_to_limit": None,
        "flops_ndv": multiple,
        "flops": multiple * group.shape.products,
        "peak_bytes": None,  # above what was there before the call
        "extra_bytes": None,  # the same without what the op must return
        "first_call_s": None,
        "error": None,
        "within_bounds": None,
        "note": provider.note,
    }


def enter_times(row: dict, seconds: list[float], limit: Limit | None) -> None:
    """Median, spread and ratio to the limit of the timed calls."""
    summary = summarise(seconds)
    row |= {
        "median_s": summary.median,
        "quartiles_s": [summary.low, summary.high],
        "fastest_s": summary.fastest,
        "calls": summary.count,
    }
    if limit:
        row |= {"limit_s": limit.seconds, "ratio_to_limit": summary.median / limit.seconds}


def enter_peak(row: dict, group: Group, peak_bytes: int | None) -> None:
    """Peak memory of one call; what the allocator rounds, and a page that was there already, may go either way."""
    row["peak_bytes"] = peak_bytes
    row["extra_bytes"] = None if peak_bytes is None else max(0, peak_bytes - bytes_returned(group))


def failure(error: Exception) -> str:
    """The status of a provider that raised."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"failed: {type(error).__name__}: {first_line[:160]}"
