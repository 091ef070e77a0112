"""What the Hopper path serves, and what it says where it does not."""

from __future__ import annotations

import sys

import pytest
import torch

from fastflow_kernels import explain, implementation
from fastflow_kernels.head import Head
from fastflow_kernels.hopper import support
from kernel_problems import make_problem, on_device

pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if torch.cuda.is_available() else [])]


def zeros(device: torch.device, vocabulary: int = 128, width: int = 16, dtype=torch.bfloat16):
    return (torch.zeros(count, width, dtype=dtype, device=device) for count in (2, vocabulary))


def test_it_is_named_where_it_serves(device):
    assert explain(*zeros(device)) == "hopper: FASTFLOW_KERNELS asks for it"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"vocabulary": 100}, r"it takes a vocabulary that is a multiple of 128, not 100"),
        ({"vocabulary": 50257}, r"it takes a vocabulary that is a multiple of 128, not 50257"),
        ({"width": 12}, r"it takes a width that is a multiple of 8, not 12"),
        ({"dtype": torch.float32}, r"its products take bfloat16, not torch\.float32"),
    ],
)
def test_explain_says_why_not(device, head, words):
    """Of the factors."""
    with pytest.raises(RuntimeError, match=f"FASTFLOW_KERNELS=hopper cannot serve this call: {words}; unset it"):
        explain(*zeros(device, **head))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"vocabulary": 100}, "a vocabulary that is a multiple of 128, not 100"),
        ({"softcap": 20.0}, "no softcap"),
        ({"bias": torch.zeros(128)}, "no bias"),
    ],
)
def test_explain_knows_the_call(device, call, words):
    call = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    with pytest.raises(RuntimeError, match=f"FASTFLOW_KERNELS=hopper cannot serve this call: it takes {words};"):
        explain(*zeros(device), **call)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"vocabulary": 100}, "a vocabulary that is a multiple of 128, not 100"),
        ({"padding": 1, "vocabulary": 127}, "a vocabulary that is a multiple of 128, not 127"),
        ({"width": 12}, "a width that is a multiple of 8, not 12"),
        ({"with_bias": True}, "no bias"),
        ({"softcap": 20.0}, "no softcap"),
        ({"with_bias": True, "softcap": 20.0}, "no bias and no softcap"),
    ],
)
def test_an_op_says_what_it_cannot_serve(device, problem, words):
    problem = make_problem([3, 4], **({"width": 16, "vocabulary": 128} | problem)).cast(torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"FASTFLOW_KERNELS=hopper cannot serve this call: it takes {words};"):
        on_device(problem, device).run()


def test_an_op_refuses_other_types(device):
    problem = make_problem([3, 4], width=16, vocabulary=128).cast(torch.float32)
    with pytest.raises(RuntimeError, match=r"its products take bfloat16, not torch\.float32"):
        on_device(problem, device).run()


def test_a_sharded_head_is_refused():
    head = Head(torch.zeros(128, 16).bfloat16(), None, shard=object())
    assert support.head_obstacle(head) == "it takes no shard"


def pretend(monkeypatch, capability: tuple[int, int], missing: tuple[str, ...] = ()) -> None:
    """A CUDA device of this capability, and these packages away."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(support, "quack_release", lambda: support.QUACK)
    monkeypatch.setattr(support, "import_failure", lambda: None)
    monkeypatch.setattr(support, "missing_packages", lambda: [*missing])


def test_missing_packages_are_named(monkeypatch):
    cuda = torch.device("cuda", 0)
    pretend(monkeypatch, (9, 0), missing=("quack",))
    assert support.device_obstacle(cuda, torch.bfloat16) == "quack not installed (pip install 'fastflow[hopper]')"
    with pytest.raises(RuntimeError, match=r"hopper cannot serve this call: quack not installed \(pip install"):
        implementation.choose(cuda, torch.bfloat16)
    pretend(monkeypatch, (9, 0))
    assert support.device_obstacle(cuda, torch.bfloat16) is None


def test_another_release_of_quack_is_not_taken(monkeypatch):
    pretend(monkeypatch, (9, 0))
    for release in ((0, 5), (0, 7), None):
        monkeypatch.setattr(support, "quack_release", lambda release=release: release)
        obstacle = support.device_obstacle(torch.device("cuda", 0), torch.bfloat16)
        assert obstacle == "it needs quack-kernels 0.6 (pip install 'fastflow[hopper]')"


def test_packages_that_do_not_load_leave_the_head_to_fused(monkeypatch):
    """Half of an installation is found, has a release, and breaks on import."""
    monkeypatch.setitem(sys.modules, "fastflow_kernels.hopper.project", None)
    failure = support.import_failure.__wrapped__()
    assert failure.startswith("its packages do not load: ModuleNotFoundError: ")
    assert failure.endswith("(pip install --force-reinstall 'fastflow[hopper]')")
    monkeypatch.delenv("FASTFLOW_KERNELS", raising=False)
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(support, "import_failure", lambda: failure)
    choice = implementation.choose(torch.device("cuda", 0), torch.bfloat16, Head(torch.zeros(128, 16).bfloat16(), None))
    assert choice.name == "fused"
    assert choice.reason.endswith(f"their epilogue is free; not hopper: {failure}")


def test_a_weight_that_is_not_aligned_is_refused():
    weight = torch.zeros(4 + 128 * 16, dtype=torch.bfloat16)[4:].view(128, 16)
    assert support.head_obstacle(Head(weight, None)) == "it takes a weight that starts at a multiple of 16 bytes"


def test_explain_says_whose_product_takes_statistics(device):
    plain, asked = (explain(*zeros(device), statistics=statistics) for statistics in (False, True))
    assert asked == f"{plain}; the projection that takes statistics is that of fused"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_architectures_are_refused(monkeypatch, capability):
    pretend(monkeypatch, capability)
    obstacle = support.device_obstacle(torch.device("cuda", 0), torch.bfloat16)
    assert obstacle == "its products need compute capability 9.0"


@pytest.mark.parametrize("missing", [(), ("quack",)])
def test_unasked_it_serves_what_it_takes_or_nothing(monkeypatch, missing):
    """A head that it does not take goes to `fused` without an error."""
    monkeypatch.delenv("FASTFLOW_KERNELS")
    pretend(monkeypatch, (9, 0), missing)
    cuda, weight = torch.device("cuda", 0), torch.zeros(128, 16).bfloat16()
    found = [
        implementation.choose(cuda, torch.bfloat16, head).name
        for head in (Head(weight, None), Head(weight, None, softcap=20.0), Head(weight[:100], None), None)
    ]
    assert found == ["fused" if missing else "hopper", "fused", "fused", "fused"]
