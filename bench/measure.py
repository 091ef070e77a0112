"""One group: every provider checked against float64, then all timed together, then set against the limit."""

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench import errors, limits, memory
from bench.environment import pin_float32_products
from bench.exact import exact_answer
from bench.ops import Step
from bench.peak import peak_of
from bench.problem import Problem, problems_of
from bench.providers.provider import Provider, Unavailable, why_not
from bench.rows import enter_peak, enter_times, failure, new_row
from bench.shapes import Group
from bench.timing import interleaved, seconds_of, summarise

HARNESS = "the harness"
SQUARE_PRODUCT = "(8192^3)"
CACHE_BYTES = {"cuda": 64 * 2**20, "cpu": 32 * 2**20}
MOST_PROBLEMS = 8
NEVER_LATE = ("fastflow", "gemms")  # run even when the time is up


@dataclass(frozen=True)
class Settings:
    """How to measure; the same for all groups."""

    repeats: int
    seconds: float = 60.0  # of timed rounds per group
    mean_length: int | None = None
    memory: bool = True
    deadline: float = float("inf")  # time.monotonic() after which no provider is started
    banned: dict = field(default_factory=dict)  # (provider, group) or (provider, None) -> why it is not run again


@dataclass
class GroupResult:
    """Rows of the table, the limit they are set against, and what is wrong with our own answers."""

    group: Group
    rows: list[dict]
    limit: dict | None
    wrong: list[str]


class DeviceLost(Exception):
    """A provider left the CUDA context unusable: the process must be replaced."""

    def __init__(self, provider: str, message: str):
        super().__init__(message)
        self.provider, self.message = provider, message


def measure_group(
    group: Group, providers: list[Provider], settings: Settings, watch: Callable[[str], None] = lambda name: None
) -> GroupResult:
    """`watch` is told which provider runs next, for whoever must say which one broke the process."""
    providers = [provider for provider in providers if group.op in provider.flops]
    rows = {provider.name: new_row(provider, group) for provider in providers}
    watch(HARNESS)
    pin_float32_products()
    problems = problems_of(group, count=_problem_count(group), mean_length=settings.mean_length)
    exact = exact_answer(problems[0], group.op)
    steps: dict[str, Step] = {}
    for provider in providers:
        row = rows[provider.name]
        watch(provider.name)
        row["status"] = _skipped(provider, group, settings) or _first_calls(
            provider, group, problems[0], exact, row, steps, settings
        )
        pin_float32_products()  # what it imported may have set another
        _clean_up(group, provider.name)
    del exact

    references = _references(group, problems[0], steps)
    copy_rate = limits.copy_bytes_per_s(group.device)
    times, failed = interleaved(
        steps | references,
        problems,
        group.device,
        repeats=settings.repeats,
        seconds=settings.seconds,
        before=watch,
    )
    for name, error in failed.items():
        if name in rows:
            rows[name]["status"] = failure(error)
        _check_device(group, name, error)
    gemms, square = (summarise(times[name]).median if times.get(name) else None for name in ("gemms", SQUARE_PRODUCT))
    limit = limits.limit_of(group, gemms, square, copy_rate) if gemms else None
    for name, row in rows.items():
        if times.get(name) and name not in failed:
            enter_times(row, times[name], limit)
    return GroupResult(group, list(rows.values()), limit and limit.as_json(), _judge(rows, providers, group))


def _problem_count(group: Group) -> int:
    """So many that a problem's hidden states have left the cache when it comes round again."""
    rows, width, _ = group.shape
    size = rows * width * (4 if group.dtype == "float32" else 2)
    return min(MOST_PROBLEMS, 2 + CACHE_BYTES[group.device] // size)


def _skipped(provider: Provider, group: Group, settings: Settings) -> str | None:
    banned = settings.banned.get((provider.name, None)) or settings.banned.get((provider.name, group))
    if banned:
        return f"failed: {banned}"
    if time.monotonic() > settings.deadline and provider.name not in NEVER_LATE:
        return "skipped: out of time"
    reason = why_not(provider, group)
    return f"skipped: {reason}" if reason else None


def _first_calls(
    provider: Provider,
    group: Group,
    problem: Problem,
    exact: dict,
    row: dict,
    steps: dict[str, Step],
    settings: Settings,
) -> str:
    """Build the step, check its first answer on poisoned memory, measure its memory; the row's status."""
    try:
        step = provider.make(group.op, problem)
        outputs: dict = {}
        poison = group.device == "cuda" or provider.is_ours  # on the CPU it changes what others compile
        with memory.poisoned(group.device) if poison else contextlib.nullcontext():
            row["first_call_s"] = seconds_of(lambda: outputs.update(step(problem)), group.device)
        if provider.has_answer:
            row["error"] = errors.errors_of(outputs, exact)
        outputs.clear()
        if settings.memory and group.device == "cuda":
            enter_peak(row, group, peak_of(lambda: step(problem), torch.device(group.device)))
        elif settings.memory:
            enter_peak(row, group, memory.cpu_peak(provider, group, settings.mean_length))
    except Unavailable as reason:
        return f"skipped: {reason}"
    except Exception as error:
        _check_device(group, provider.name, error)
        return failure(error)
    steps[provider.name] = step
    how = provider.explain(problem)
    row["note"] = f"{provider.note} Here: {how}." if how else provider.note
    return "ok"


def _check_device(group: Group, name: str, error: Exception) -> None:
    """A CUDA error such as an illegal access makes every later call fail: say so instead of blaming the others."""
    if group.device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except Exception as lost:
        raise DeviceLost(name, failure(error)) from lost


def _clean_up(group: Group, name: str) -> None:
    """Free what the provider left, so that the next one finds the memory that it would have alone."""
    if group.device == "cuda":
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLost(name, failure(error)) from error


def _references(group: Group, problem: Problem, steps: dict[str, Step]) -> dict[str, Step]:
    """What the limit needs and no provider gives: the square product, and the op's products if not selected."""
    from bench.providers.gemms import PROVIDERS

    needed = {} if "gemms" in steps else {"gemms": PROVIDERS[0].make(group.op, problem)}
    if group.device == "cuda":
        needed[SQUARE_PRODUCT] = limits.square_product(getattr(torch, group.dtype))
    return needed


def _judge(rows: dict[str, dict], providers: list[Provider], group: Group) -> list[str]:
    """Every answer against the same bounds; what comes back is what is wrong with ours."""
    baseline = rows.get(errors.BASELINE, {}).get("error")
    wrong = []
    for provider in providers:
        row = rows[provider.name]
        if row["error"] is not None:
            found = errors.violations(row["error"], group, baseline)
            row["within_bounds"] = not found
            wrong += [f"{provider.name}, {group}: {what}" for what in found if provider.is_ours]
        if provider.is_ours and row["status"].startswith("failed"):
            wrong.append(f"{provider.name}, {group}: {row['status']}")
    return wrong
