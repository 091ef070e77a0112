"""The native sweeps against their formulas in float64, for every instruction set that this processor runs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16)
EPSILON = 2.0**-23
SMALLEST = 2e-38  # below it exponentials are 0

shapes = st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 511, 513, 1100]))
compiled_sets = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def matrix(
    rows: int, columns: int, dtype: torch.dtype, *, gap: int = 0, offset: int = 0, seed: int = 0
) -> torch.Tensor:
    """Logits (rows, columns), `offset` elements into their memory, with `gap` unused elements between rows."""
    generator = torch.Generator().manual_seed(seed)
    memory = 4 * torch.randn(offset + rows * (columns + gap) + gap + 1, generator=generator)
    return memory.to(dtype).as_strided((rows, columns), (columns + gap, 1), offset)


def capped(logits: torch.Tensor, bias: torch.Tensor | None, softcap: float | None):
    """z and the soft-cap's slope, in float64."""
    total = logits.double() if bias is None else logits.double() + bias.double()
    if softcap is None:
        return total, torch.ones_like(total)
    fraction = (total / softcap).tanh()
    return softcap * fraction, 1 / (total / softcap).cosh().square()


def sweep(row_pass, logits, columns, *, bias=None, softcap=None, scale=1.0, reference=None, store=True, **further):
    """(sum of others, targets' logits, any moments, logits afterwards); the reference is the row's maximum unless
    given."""
    if reference is None:
        z, _ = capped(logits, bias, softcap)
        reference = z.amax(dim=1).float() if z.shape[1] else torch.zeros(len(z))
    logits = logits.clone(memory_format=torch.preserve_format)
    options = {"softcap": softcap, "scale": scale, "reference": reference, "columns": columns, "store": store}
    return *row_pass.row_exponentials_(logits, bias, **options, **further), logits


class TestMaximum:
    @compiled_sets
    @given(
        shape=shapes, dtype=st.sampled_from(DTYPES), biased=st.booleans(), gap=st.integers(0, 3), seed=st.integers(0)
    )
    def test_any_shape(self, row_pass, shape, dtype, biased, gap, seed):
        logits = matrix(*shape, dtype, gap=gap, offset=gap, seed=seed % 2**32)
        bias = torch.linspace(-5, 5, shape[1]) if biased else None
        sums = logits.float() if bias is None else logits.float() + bias
        expected = sums.amax(dim=1) if shape[1] else torch.full((shape[0],), -math.inf)
        torch.testing.assert_close(row_pass.row_maximum(logits, bias), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("column", [0, 63, 64, 199])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite(self, row_pass, dtype, column, value):
        logits = matrix(3, 200, dtype)
        logits[1, column] = value
        torch.testing.assert_close(row_pass.row_maximum(logits, None), logits.float().amax(dim=1), equal_nan=True)

    def test_nan_in_the_bias(self, row_pass):
        bias = torch.zeros(200)
        bias[7] = math.nan
        assert row_pass.row_maximum(matrix(3, 200, torch.float32), bias).isnan().all()

    def test_nothing_but_minus_infinity(self, row_pass):
        assert row_pass.row_maximum(torch.full((2, 100), -math.inf), None).tolist() == [-math.inf] * 2


class TestExponentials:
    @settings(compiled_sets, max_examples=120)
    @given(data=st.data(), shape=shapes, dtype=st.sampled_from(DTYPES), biased=st.booleans(), gap=st.integers(0, 3),
           softcap=st.sampled_from([None, 0.5, 6.0, 50.0]), scale=st.sampled_from([1.0, 0.4, 2.5]), store=st.booleans(),
           with_moments=st.booleans(), tilts=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip
    def test_any_shape(
        self, row_pass, data, shape, dtype, biased, gap, softcap, scale, store, with_moments, tilts, seed
    ):
        logits = matrix(*shape, dtype, gap=gap, offset=gap, seed=seed)
        bias = torch.linspace(-5, 5, shape[1]) if biased else None
        column = st.one_of(st.integers(-3, shape[1] + 3), st.sampled_from([-(2**63), 2**63 - 1]))
        columns = torch.tensor(data.draw(st.lists(column, min_size=shape[0], max_size=shape[0])), dtype=torch.int64)
        options = {"bias": bias, "softcap": softcap, "scale": scale, "store": store}
        affine = torch.linspace(-1, 1, shape[0]), torch.linspace(2, -1, shape[0])
        sums, targets, *moments, after = sweep(
            row_pass, logits, columns, **options, with_moments=with_moments, affine=affine if tilts else None
        )

        z, slope = capped(logits, bias, softcap)
        reference = z.amax(dim=1, keepdim=True).float().double() if shape[1] else torch.zeros(shape[0], 1)
        is_target = columns[:, None] == torch.arange(shape[1])
        exponents = ((z - reference) * scale).clamp(max=0.0)
        exponentials = exponents.exp().masked_fill(is_target, 0.0)
        # each argument carries a few roundings of the largest number on the way to it
        rounding = EPSILON * (4 + 3 * max(scale, 1.0) * (z.abs() + reference.abs()))
        error = (sums - exponentials.sum(dim=1)).abs()
        assert (error <= (exponentials * rounding).sum(dim=1) + SMALLEST * shape[1]).all()
        error = (targets - z.masked_fill(~is_target, 0.0).sum(dim=1)).abs()
        assert (error <= EPSILON * (1 + 2 * z.abs().sum(dim=1))).all()
        if with_moments:
            error = (moments[0] - (exponentials * exponents).sum(dim=1)).abs()
            allowed = exponentials * rounding * (2 + exponents.abs())
            assert (error <= allowed.sum(dim=1) + 1e-35 * shape[1]).all()
            assert ((moments[1] - z.sum(dim=1)).abs() <= 4 * EPSILON * (z.abs() + 5).sum(dim=1)).all()
        if not store:
            assert torch.equal(after, logits)
            return
        constant, factor = (values.double()[:, None] for values in affine) if tilts else (torch.ones(1), torch.zeros(1))
        argument = 0.0 if softcap is None else (4 * (logits.double().abs() + 5) / softcap)
        half_step = 2.0**-8 if dtype == torch.bfloat16 else 0.0
        size = exponentials * slope * (constant.abs() + factor.abs() * (1 + exponents.abs()))
        expected = exponentials * slope * (constant + factor * exponents)
        of_line, smallest = (2, 1e-35) if tilts else (1, SMALLEST)
        allowed = size * (of_line * rounding + EPSILON * argument) + half_step * expected.abs() + smallest
        assert ((after - expected).abs() <= allowed).all()
        assert (after[is_target] == 0.0).all()

    @pytest.mark.parametrize("softcap", [None, 5.0])
    def test_bfloat16_is_float32_rounded_once(self, row_pass, softcap):
        logits, columns = matrix(4, 3000, torch.bfloat16), torch.tensor([0, 65, 2999, -1])
        narrow = sweep(row_pass, logits, columns, softcap=softcap)
        wide = sweep(row_pass, logits.float(), columns, softcap=softcap)
        assert torch.equal(narrow[0], wide[0]) and torch.equal(narrow[1], wide[1])
        assert torch.equal(narrow[2], wide[2].bfloat16())

    def test_memory_between_rows_stays(self, row_pass):
        memory = torch.full((3, 70), 7.0)
        columns = torch.tensor([0, -1, 66])
        row_pass.row_exponentials_(
            memory[:, :67], None, softcap=None, scale=1.0, reference=torch.full((3,), 7.0), columns=columns, store=True
        )
        assert (memory[:, 67:] == 7.0).all() and (memory[1, :67] == 1.0).all()

    @pytest.mark.parametrize("rows", [1, 2, 7])
    @pytest.mark.parametrize("with_moments", [False, True])
    def test_more_threads_change_nothing(self, row_pass, rows, with_moments):
        logits, columns = matrix(rows, 1000, torch.float32), torch.arange(rows)
        affine = (torch.linspace(-1, 1, rows), torch.linspace(2, -1, rows)) if with_moments else None
        one = sweep(row_pass, logits, columns, with_moments=with_moments, affine=affine)
        torch.set_num_threads(3)
        try:
            three = sweep(row_pass, logits, columns, with_moments=with_moments, affine=affine)
            maximum = row_pass.row_maximum(logits, None)
        finally:
            torch.set_num_threads(1)
        assert all(torch.equal(*pair) for pair in zip(one, three, strict=True))
        assert torch.equal(maximum, logits.amax(dim=1))


class TestMomentsAndTilts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("column", [0, 63, 64, 129])
    def test_minus_infinity_has_no_share(self, row_pass, dtype, column):
        """0 * -inf would be NaN."""
        logits = matrix(2, 130, dtype)
        logits[:, column] = -torch.inf
        affine = torch.ones(2), torch.ones(2)
        for columns in (torch.tensor([5, 5]), torch.tensor([column, column])):
            found = sweep(row_pass, logits, columns, with_moments=True, affine=affine)
            assert found[2].isfinite().all() and found[4].isfinite().all() and (found[4][:, column] == 0).all()
            assert (found[3] == -torch.inf).all()

    @pytest.mark.parametrize("column", [0, 63, 64, 129])
    def test_nan_in_the_target_stays_out(self, row_pass, column):
        logits = matrix(1, 130, torch.float32)
        logits[0, column] = torch.nan
        options = {"reference": torch.full((1,), 20.0), "with_moments": True, "affine": (torch.ones(1), torch.ones(1))}
        _, _, weighted, logit_sum, after = sweep(row_pass, logits, torch.tensor([column]), **options)
        assert weighted.isfinite().all() and after.isfinite().all() and logit_sum.isnan().all()
        _, _, weighted, _, after = sweep(row_pass, logits, torch.tensor([-1]), **options)
        assert weighted.isnan().all() and after[0, column].isnan() and after.isnan().sum() == 1


class TestWhatIsNotFinite:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("softcap", [None, 5.0])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("column", [3, 64, 129])
    def test_one_entry(self, row_pass, dtype, softcap, value, column):
        logits = matrix(2, 130, dtype)
        logits[0, column] = value
        sums, _, after = sweep(row_pass, logits, torch.tensor([5, 5]), softcap=softcap)
        z, slope = capped(logits, None, softcap)
        expected = (z - z.amax(dim=1, keepdim=True)).exp()
        expected[:, 5] = 0.0
        torch.testing.assert_close(sums, expected.sum(dim=1).float(), rtol=1e-5, atol=0, equal_nan=True)
        torch.testing.assert_close(after, (expected * slope).to(dtype), rtol=1e-2, atol=SMALLEST, equal_nan=True)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("softcap", [None, 5.0])
    @pytest.mark.parametrize("column", [0, 3, 63, 64, 127, 128, 129])
    def test_in_the_target_it_stays_out_of_the_sum(self, row_pass, dtype, softcap, column):
        logits, columns = matrix(2, 130, dtype), torch.tensor([column, column])
        logits[:, column] = torch.tensor([math.nan, -math.inf])
        sums, targets, after = sweep(row_pass, logits, columns, softcap=softcap, reference=torch.full((2,), 20.0))
        assert sums.isfinite().all() and after.isfinite().all()
        assert targets[0].isnan() and targets[1] == (-math.inf if softcap is None else -softcap)

    def test_a_nan_that_rounding_could_carry_into_a_number(self, row_pass):
        bias = torch.zeros(70)
        bias.view(torch.int32)[7] = 0x7FFFFFFF
        logits = matrix(1, 70, torch.bfloat16)
        _, _, after = sweep(row_pass, logits, torch.tensor([3]), bias=bias, reference=torch.full((1,), 20.0))
        assert after[0, 7].isnan() and after.isnan().sum() == 1

    def test_nothing_but_minus_infinity(self, row_pass):
        sums, targets, _ = sweep(row_pass, torch.full((1, 100), -math.inf), torch.tensor([3]))
        assert sums.isnan() and targets == -math.inf

    def test_a_reference_of_nan(self, row_pass):
        assert sweep(row_pass, matrix(1, 70, torch.float32), torch.tensor([3]), reference=torch.tensor([math.nan]))[
            0
        ].isnan()

    def test_too_small_is_zero(self, row_pass):
        logits = torch.tensor([[-86.9, -87.1, -1e4, -3e38, -math.inf]])
        _, _, after = sweep(row_pass, logits, torch.tensor([-1]), reference=torch.zeros(1))
        assert after[0, 0] > 0 and after[0, 1:].tolist() == [0.0] * 4


class TestDoor:
    """What the library would take on trust is refused before it."""

    @pytest.mark.parametrize(
        "logits",
        [torch.zeros(3, 4).double(), torch.zeros(3, 4).half(), torch.zeros(4, 3).t(), torch.zeros(3, 4, device="meta")],
    )
    def test_logits_of_another_kind(self, row_pass, logits):
        with pytest.raises(ValueError, match="contiguous along the last dimension"):
            row_pass.row_maximum(logits, None)

    def test_bias_of_another_length(self, row_pass):
        with pytest.raises(ValueError, match=r"bias must be \(4,\)"):
            row_pass.row_maximum(torch.zeros(3, 4), torch.zeros(3))

    def test_reference_and_columns_of_another_length(self, row_pass):
        logits = torch.zeros(3, 4)
        with pytest.raises(ValueError, match=r"reference must be \(3,\)"):
            sweep(row_pass, logits, torch.zeros(3), reference=torch.zeros(2))
        with pytest.raises(ValueError, match=r"columns must be \(3,\)"):
            sweep(row_pass, logits, torch.zeros(4))
        with pytest.raises(ValueError, match=r"affine must be \(3,\)"):
            sweep(row_pass, logits, torch.zeros(3), affine=(torch.zeros(3), torch.zeros(1)))
