"""Others' kernels as providers: how they are imported, what sizes they take, and where their rows stand in the plot."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from matplotlib.axes import Axes

from bench import plot
from bench.errors import errors_of
from bench.exact import exact_answer
from bench.ops import bytes_returned
from bench.problem import make_problems
from bench.providers import fastflow, liger, provider, quack, select, trl
from bench.rows import enter_peak, new_row
from bench.shapes import OP_NAMES, Group, Shape

SHAPE = Shape(23, 8, 17)
GROUP = Group("flow_loss", SHAPE, "float32", "cpu")
FAKE_TRL = """
import torch

class ChunkedLogProbFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
        assert (bias, temperature, softcap, scale, outputs) == (None, 1.0, None, 1.0, ("log_probs",))
        logits = hidden @ weight.T
        ctx.save_for_backward(hidden, weight, targets)
        return torch.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0], None

    @staticmethod
    def backward(ctx, upstream, *_):
        from ..trainer.utils import maybe_gather_lm_head_ctx

        hidden, weight, targets = ctx.saved_tensors
        with maybe_gather_lm_head_ctx(weight, None):
            direction = -torch.softmax(hidden @ weight.T, 1)
            direction[torch.arange(len(targets)), targets] += 1
            direction *= upstream[:, None]
        return direction @ weight, direction.T @ hidden, *(None,) * 7
"""


@pytest.fixture
def problem():
    return make_problems(SHAPE, torch.float64, "cpu", mean_length=6)[0]


@pytest.fixture
def no_trl(monkeypatch):
    """As if trl had never been imported, before and after."""
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    trl.chunked_logprob.cache_clear()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        del sys.modules[name]
    trl.chunked_logprob.cache_clear()


@pytest.fixture
def fake_trl(tmp_path, monkeypatch, no_trl):
    """A trl whose own __init__ and trainer cannot be imported, as where its dependencies are missing."""
    for name, text in (("", "import no_such_dependency"), ("trainer", "import no_such_dependency"), ("kernels", "")):
        (tmp_path / "trl" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "trl" / name / "__init__.py").write_text(text, encoding="utf-8")
    (tmp_path / "trl" / "kernels" / "__init__.py").write_text(FAKE_TRL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("op", OP_NAMES)
def test_trl_needs_nothing_but_its_kernels(fake_trl, problem, op):
    (found,) = select(["trl"], quick=False)
    assert max(errors_of(found.make(op, problem)(problem), exact_answer(problem, op)).values()) < 1e-6


def test_a_trl_without_the_kernel_is_named(fake_trl, tmp_path, problem):
    (tmp_path / "trl" / "kernels" / "__init__.py").write_text("", encoding="utf-8")
    importlib.invalidate_caches()
    with pytest.raises(provider.Unavailable, match=r"came with 1\.16"):
        trl.PROVIDERS[0].make("logprob", problem)


@pytest.mark.skipif(not provider.is_installed("trl"), reason="trl is not installed")
@pytest.mark.parametrize("op", OP_NAMES)
def test_the_real_trl_answers_the_question(no_trl, op):
    problem = make_problems(SHAPE, torch.float32, "cpu", mean_length=6)[0]
    (found,) = select(["trl"], quick=False)
    assert max(errors_of(found.make(op, problem)(problem), exact_answer(problem, op)).values()) < 1e-5


@pytest.mark.parametrize("name", ["fastflow@5", "fastflow_torch@1"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_ours_at_any_size_of_blocks(problem, op, name):
    (found,) = select([name], quick=False)
    assert found.is_ours and found.name == name and name.split("@")[1] in found.note
    assert max(errors_of(found.make(op, problem)(problem), exact_answer(problem, op)).values()) < 1e-6


def test_a_setting_that_the_ops_lack_makes_the_row_skipped(problem, monkeypatch):
    monkeypatch.setattr(fastflow, "parse_blocks", lambda size: {"block_chapters": 3})
    with pytest.raises(provider.Unavailable, match="flow_loss has no setting block_chapters"):
        fastflow.at_size("fastflow@3").make("flow_loss", problem)


@pytest.mark.parametrize("name", ["fastflow@", "fastflow@0", "fastflow@3KiB", "fastflow@GiB", "gemms@4", "nobody@4"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=r"no size of blocks|no provider"):
        select([name], quick=False)


def test_an_implementation_that_cannot_serve_a_group_says_why():
    reason = fastflow._obstacle("cuda", GROUP)
    assert "FASTFLOW_KERNELS=cuda cannot serve this call" in reason
    assert fastflow._obstacle("torch", GROUP) is None and fastflow._obstacle(None, GROUP) is None


def test_the_implementation_taken_unasked_has_one_row(monkeypatch):
    monkeypatch.setattr(fastflow, "_choice", lambda group: "rows: products of float32 are the vendor library's")
    assert fastflow._obstacle_or_default("rows", GROUP) == "what fastflow takes here unasked"
    assert fastflow._obstacle_or_default("torch", GROUP) is None
    (sized,) = select(["fastflow_rows@7"], quick=False)
    assert sized.refuses(GROUP) is None


def with_forward(monkeypatch, *names: str) -> list:
    """A Liger whose function takes these settings; returns what it is called with."""
    calls = []

    class Function:
        @staticmethod
        def apply(hidden, weight, targets, *rest):
            calls.append(dict(zip(names, rest, strict=True)))
            return hidden.sum(), None, None, None

    arguments = ", ".join(f"{name}={name!r}" for name in names)
    exec(f"def forward(ctx, _input, weight, target, {arguments}): ...", namespace := {})
    Function.forward = staticmethod(namespace["forward"])
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", SimpleNamespace(LigerFusedLinearCrossEntropyFunction=Function))
    return calls


def test_ligers_chunks_go_where_its_version_has_the_knob(monkeypatch, problem):
    calls = with_forward(monkeypatch, "bias", "reduction", "accum_dtype", "chunk_mem_const")
    liger._fused_linear("sum", 8)(problem.hidden, problem.weight, problem.targets)
    liger._fused_linear("none", 1, None)(problem.hidden, problem.weight, problem.targets)
    common = {"bias": "bias"}
    assert calls == [
        common | {"reduction": "sum", "accum_dtype": torch.float32, "chunk_mem_const": 8},
        common | {"reduction": "none", "accum_dtype": None, "chunk_mem_const": "chunk_mem_const"},
    ]


def test_a_liger_without_the_knob_has_one_size(monkeypatch):
    with_forward(monkeypatch, "bias", "reduction", "accum_dtype")
    liger._fused_linear("sum", 1)
    with pytest.raises(provider.Unavailable, match="no knob"):
        liger._fused_linear("sum", 8)


@pytest.mark.skipif(not provider.is_installed("liger_kernel"), reason="liger-kernel is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="its kernels are interpreted where there is no GPU only")
@pytest.mark.parametrize(("chunks", "accumulate"), [(1, torch.float32), (8, torch.float32), (16, None)])
def test_the_real_liger_takes_its_chunks(chunks, accumulate):
    problem = make_problems(Shape(64, 16, 512), torch.float32, "cpu", mean_length=9)[0]
    inputs = problem.hidden, problem.weight
    total = torch.log_softmax(problem.hidden @ problem.weight.T, 1).gather(1, problem.targets[:, None]).sum()
    want = torch.autograd.grad(total, inputs)
    step = provider.summing(lambda: liger._fused_linear("sum", chunks, accumulate))("flow_loss", problem)
    found = step(problem)
    torch.testing.assert_close((found["d_hidden"], found["d_weight"]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "width"), [(8192, 4096), (4096, 4096), (4000, 4096), (800, 896), (1500, 1536), (8192, 3584)]
)
def test_no_chunk_of_quacks_has_as_many_rows_as_the_width(rows, width):
    """Where a chunk has, its scaled exponentials fail."""
    size = quack.chunk_rows(rows, width)
    whole, rest = divmod(rows, size)
    chunks = [size] * whole + [-(-rest // 128) * 128] * (rest > 0)
    assert size % 128 == 0 and width not in chunks


def test_quack_is_asked_for_the_kernel_meant(monkeypatch, problem):
    calls = []

    def kernel(hidden, weight, targets, chunk_size, reduction, use_scaled_exp=None):
        assert use_scaled_exp is False or chunk_size != hidden.shape[1]
        calls.append(use_scaled_exp)
        return hidden.sum() + weight.sum()

    def old_kernel(hidden, weight, targets, chunk_size, reduction):
        return hidden.sum()

    module = SimpleNamespace(chunked_linear_cross_entropy=kernel)
    monkeypatch.setitem(sys.modules, "quack", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "quack.linear_cross_entropy", module)
    quack._sum.cache_clear()
    for name in ("quack_sum", "quack_sum_scaled", "quack_per_sequence"):
        (found,) = select([name], quick=False)
        found.make("flow_loss", problem)(problem)
    assert calls == [False, True, *[None] * problem.sequence_count]
    quack._sum.cache_clear()
    module.chunked_linear_cross_entropy = old_kernel
    with pytest.raises(provider.Unavailable, match=r"0\.6\.5"):
        quack._sum(True)
    quack._sum.cache_clear()


def test_extra_memory_leaves_out_what_must_be_returned():
    assert bytes_returned(GROUP) == 4 * 23 + 4 * (23 + 17) * 8
    assert bytes_returned(GROUP._replace(op="logprob", dtype="bfloat16")) == 4 * 23
    row = new_row(select(["fastflow"], quick=False)[0], GROUP)
    enter_peak(row, GROUP, bytes_returned(GROUP) + 100)
    assert row["extra_bytes"] == 100 and row["is_ours"] and row["has_answer"]
    enter_peak(row, GROUP, 5)
    assert row["extra_bytes"] == 0
    enter_peak(row, GROUP, None)
    assert row["extra_bytes"] is None


def point(name: str, extra: float | None, ratio: float, **more) -> dict:
    row = {"provider": name, "extra_bytes": extra, "ratio_to_limit": ratio, "is_ours": False, "has_answer": True}
    return row | more


def test_the_plane_joins_sizes_and_keeps_names_apart(tmp_path, monkeypatch):
    rows = [
        point("fastflow@4096", 3e9, 1.15, is_ours=True),
        point("fastflow", 1e9, 1.2, is_ours=True),
        point("quack_sum", 1e9, 1.2, has_answer=False),
        point("gemms", 0, 1.0),
    ]
    assert [[row["provider"] for row in curve] for curve in plot._curves(rows)] == [["fastflow", "fastflow@4096"]]
    labels = {}
    annotate = Axes.annotate

    def spy(self, text, xy, *place, **options):
        if not place:  # matplotlib's own, of the bars, gives the place by position
            labels[text] = options["xytext"][1]
        return annotate(self, text, xy, *place, **options)

    monkeypatch.setattr(Axes, "annotate", spy)
    result = SimpleNamespace(group=GROUP, rows=[*rows, point("failed", None, None)])
    bars = SimpleNamespace(group=GROUP, rows=[point("eager", None, 2.0)])
    plot.write_plot([result, bars], tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 10_000
    assert set(labels) == {"fastflow", "fastflow@4096", "quack_sum", "gemms"}
    assert abs(labels["fastflow"] - labels["quack_sum"]) >= plot.LABEL_POINTS
