"""Wheels as users build them, in pip's isolated environment: with a compiler, without one, and with orders about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "fastflow", "kernels")
LIBRARY, CUDA_LIBRARY = "fastflow_kernels/_native.so", "fastflow_kernels/_native_cuda.so"
NO_COMPILER = {"CC": "/nonexistent", "CXX": "/nonexistent"}

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what is installed, and nothing that was built before."""
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, tmp_path / "source" / part, ignore=built)
        else:
            (tmp_path / "source").mkdir(exist_ok=True)
            shutil.copy(REPOSITORY / part, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def quick(tmp_path) -> str:
    """A compiler that does not optimise: these tests look at what is built, not at how fast it is."""
    return script(tmp_path / "quick", 'exec g++ "$@" -O0')


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def build(source, tmp_path):
    """A function that runs pip wheel and returns (its exit code, what it printed, the wheel or None)."""

    def run(**environment: str) -> tuple[int, str, Path | None]:
        command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", tmp_path / "wheels", source]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")}
        done = subprocess.run(
            command, env={**plain, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if "Could not find a version that satisfies the requirement setuptools" in done.stdout:
            pytest.skip("needs a package index with setuptools, for pip's isolated environment")
        return done.returncode, done.stdout, next((tmp_path / "wheels").glob("*.whl"), None)

    return run


def contents(wheel: Path) -> tuple[set[str], str]:
    """The wheel's files, and its WHEEL."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (described,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        return names, archive.read(described).decode()


def said(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if line.strip().startswith("fastflow: ")]


def is_pure(wheel: Path) -> bool:
    names, described = contents(wheel)
    assert "fastflow_kernels/cpu/native.py" in names and not any(name.startswith("csrc") for name in names)
    return wheel.name.endswith("-py3-none-any.whl") and LIBRARY not in names and "Root-Is-Purelib: true" in described


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_with_a_compiler(build, quick):
    code, output, wheel = build(CXX=quick, FASTFLOW_REQUIRE_NATIVE="1")
    assert code == 0, output
    names, described = contents(wheel)
    assert LIBRARY in names and not said(output)
    assert "Root-Is-Purelib: false" in described
    tag = wheel.stem.split("-", maxsplit=2)[2]
    assert tag.startswith("py3-none-") and tag != "py3-none-any" and f"Tag: {tag}" in described


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiler_without_openmp(build, tmp_path):
    compiler = script(tmp_path / "c++", 'case " $* " in *" -fopenmp "*) exit 1;; esac\nexec g++ "$@" -O0')
    code, output, wheel = build(CXX=compiler, FASTFLOW_REQUIRE_NATIVE="1")
    assert code == 0, output
    assert LIBRARY in contents(wheel)[0]


def test_without_a_compiler(build):
    code, output, wheel = build(**NO_COMPILER)
    assert code == 0 and is_pure(wheel), output
    (line,) = said(output)
    assert "installed without its native library" in line and "/nonexistent" in line


def test_without_a_compiler_where_the_library_is_required(build):
    code, output, wheel = build(**NO_COMPILER, FASTFLOW_REQUIRE_NATIVE="1")
    assert code != 0 and wheel is None
    (line,) = said(output)
    assert line.startswith("fastflow: FASTFLOW_REQUIRE_NATIVE=1, but its native library cannot be built")


def test_what_was_built_in_place_stays_out_of_a_wheel_without_it(build, source):
    (source / "kernels" / "fastflow_kernels" / "_native.so").write_bytes(b"of an editable install")
    code, output, wheel = build(FASTFLOW_NATIVE="0")
    assert code == 0 and is_pure(wheel), output
    assert not said(output)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_with_nvcc(build):
    """Only where it is asked for: pip's isolated environment has no torch that could tell."""
    code, output, wheel = build(FASTFLOW_CUDA="1", FASTFLOW_NATIVE="0")
    assert code == 0, output
    assert CUDA_LIBRARY in contents(wheel)[0] and LIBRARY not in contents(wheel)[0]
    assert not wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_nothing_of_an_earlier_build_stays(build, quick, tmp_path):
    """pip builds in the checkout, which keeps what was built there before."""
    assert LIBRARY in contents(build(CXX=quick)[2])[0]
    for environment in (NO_COMPILER, {"FASTFLOW_NATIVE": "0"}):
        shutil.rmtree(tmp_path / "wheels")
        code, output, wheel = build(**environment)
        assert code == 0 and is_pure(wheel), output


def test_orders_that_contradict_each_other_or_mean_nothing(build):
    code, output, wheel = build(FASTFLOW_NATIVE="0", FASTFLOW_REQUIRE_NATIVE="1")
    assert code != 0 and wheel is None and "contradicts" in output
    code, output, wheel = build(FASTFLOW_NATIVE="false")
    assert code != 0 and wheel is None and "FASTFLOW_NATIVE must be 0 or 1, got 'false'" in output


def test_without_nvcc_where_it_is_asked_for(build, tmp_path):
    """What fails for want of nvcc names it."""
    code, output, wheel = build(FASTFLOW_CUDA="1", FASTFLOW_NATIVE="0", CUDA_HOME=str(tmp_path), PATH="/usr/bin:/bin")
    if shutil.which("nvcc", path="/usr/bin:/bin"):
        pytest.skip("nvcc stands beside the system's programs here")
    assert code != 0 and wheel is None
    assert "FASTFLOW_CUDA=1 asks for the CUDA library, but nvcc is neither in CUDA_HOME nor on the PATH" in output


def test_source_distribution_has_the_sources(source, tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats=zip", "-d", tmp_path / "sdist"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = (tmp_path / "sdist").glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        names = {name.partition("/")[2] for name in opened.namelist()}
    wanted = {path.relative_to(source).as_posix() for path in (source / "csrc" / "cpu").iterdir()}
    wanted |= {"csrc/build_native.py", "csrc/compile_flags.py", "kernels/fastflow_kernels/cpu/native.py", "setup.py"}
    assert wanted <= names
