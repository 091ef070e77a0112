"""What Triton's implementations have of their own: interpreted on the CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import explain, sequence_terms
from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.head import Head
from implementations import ACCELERATOR as DEVICE
from implementations import OF_TRITON, by_those_of_triton_in_float32

pytestmark = OF_TRITON


@by_those_of_triton_in_float32
def test_sizes_of_real_models(implementation):
    """Wider than one slice of the target's dot product, more columns than a chunk of a row, more tiles than a pass."""
    tensors = implementation.head(5, width=1500, vocabulary=9000, logit_limit=12.0)
    implementation.assert_head_matches(*implementation.run_both(tensors))


def test_bytes_of_an_entry():
    from fastflow_kernels.triton.projectors import FusedProjector, RowsProjector

    types = (torch.float32, torch.bfloat16, torch.float16)
    assert [RowsProjector.entry_bytes(dtype) for dtype in types] == [4, 2, 6]
    assert [FusedProjector.entry_bytes(dtype) for dtype in types] == [4, 2, 2]


@pytest.mark.parametrize("vocabulary", [17, 2048, 4999])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "temperature": 0.7}], ids=["plain", "all"])
def test_narrow_logits_give_way_to_their_exponentials(vocabulary, options):
    """The target's logit is given. In float16, of which the kernel knows no more than of bfloat16."""
    from fastflow_kernels.triton.row import row_pass

    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(3, vocabulary + 8, generator=generator).half().to(DEVICE)
    bias = torch.randn(vocabulary, generator=generator).to(DEVICE)
    logits, between = memory[:, :vocabulary], memory[:, vocabulary:].clone()
    head = Head(torch.empty(vocabulary, 0, device=DEVICE), bias, **options)
    targets = torch.tensor([0, vocabulary - 1, -1], device=DEVICE)
    wide = torch.empty(3, vocabulary, device=DEVICE)
    _, *statistics = row_pass(logits.float(), head, targets, wide)
    given = torch.randn(3, generator=generator).to(DEVICE)
    found, *narrow = row_pass(logits, head, targets, logits, given)
    assert found is given
    torch.testing.assert_close(narrow, statistics, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits, wide.half(), rtol=2**-10, atol=2**-24)
    assert torch.equal(memory[:, vocabulary:], between)


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
def test_the_sequence_kernel_equals_the_torch_function(ratio):
    """Empty sequences, single tokens, one of 100,000, and one that goes over two blocks."""
    from fastflow_kernels.triton import sequence

    lengths = torch.tensor([1, 0, 100_000, 1, 7, 30])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    generator = torch.Generator().manual_seed(0)
    token_logprob = -torch.rand(int(offsets[-1]), generator=generator)
    logprob = torch.stack([part.double().sum() for part in token_logprob.split(lengths.tolist())])
    row_factor = torch.randn(len(token_logprob), generator=generator)
    inputs = sequence_terms.SequenceInputs(
        log_z=torch.randn(6, generator=generator).double(),
        log_target=torch.randn(6, generator=generator).double(),
        length_scale=1.0 / lengths.double(),
        behaviour_logprob=logprob - torch.linspace(-0.7, 0.7, 6) * (lengths if ratio == "token_mean" else 1),
        clip_low=0.2,
        clip_high=0.28,
        ratio=ratio,
        normaliser=6.0,
    )
    blocks = [*sequence_blocks(offsets[:-1].tolist(), 60_000), *sequence_blocks(offsets[-2:].tolist(), 20)]
    blocks[-2:] = [block._replace(sequence_start=5, sequence_stop=6) for block in blocks[-2:]]
    assert any(block.is_part for block in blocks) and not all(block.is_part for block in blocks)

    outcomes = []
    for device, settle in (("cpu", sequence_terms.settle_sequences_), (DEVICE, sequence.settle_sequences_)):
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in vars(inputs).items()
        }
        there = sequence_terms.SequenceInputs(**moved)
        terms, factor = sequence_terms.SequenceTerms.zeros(like=there.log_z), row_factor.to(device, copy=True)
        for block in blocks:
            settle(terms, there, offsets.to(device), block, token_logprob[block.rows].to(device), factor[block.rows])
        outcomes.append([value.cpu() for value in (*terms, factor)])
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-7, atol=0)


def test_what_is_forced_is_taken_or_refused(monkeypatch):
    hidden, weight = torch.zeros(2, 4, device=DEVICE), torch.zeros(3, 4, device=DEVICE)
    monkeypatch.setenv("FASTFLOW_KERNELS", "fused")
    assert explain(hidden, weight) == "fused: FASTFLOW_KERNELS asks for it"
    with pytest.raises(RuntimeError, match=r"cannot serve this call: .*float64.*; unset it"):
        explain(hidden.double(), weight.double())
    monkeypatch.setenv("FASTFLOW_KERNELS", "tritn")
    with pytest.raises(ValueError, match="must be one of torch, native, rows, cuda, fused, hopper, got 'tritn'"):
        explain(hidden, weight)
