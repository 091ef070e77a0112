"""How the native library is found, refused and spoken of, with copies of it made up where it matters."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from fastflow_kernels.cpu import native

SOURCE = 'extern "C" int fastflow_abi_version(void) { return %d; }\n'


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """native.py as if nothing had been loaded yet, looking for a file that is not there."""
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native, "FILE", tmp_path / "_native.so")
    for cached in (native.library, native._load):
        cached.cache_clear()
    yield native
    for cached in (native.library, native._load):
        cached.cache_clear()


def warnings_of(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert call() is None
    return [str(warning.message) for warning in caught]


class TestMissing:
    def test_it_says_what_to_do(self, fresh):
        assert fresh.why_not().startswith("fastflow was installed without its native library")
        assert fresh.REINSTALL in fresh.why_not() and "FASTFLOW_NATIVE=0" in fresh.why_not()
        assert fresh.describe() == fresh.why_not() and fresh.is_worth_mending()

    def test_it_warns_once(self, fresh):
        (message,) = warnings_of(fresh.library)
        assert fresh.why_not() in message
        assert warnings_of(fresh.library) == []

    def test_questions_warn_of_nothing(self, fresh):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fresh.why_not(), fresh.describe(), fresh.is_worth_mending()

    def test_on_purpose_it_is_quiet(self, fresh, monkeypatch):
        monkeypatch.setenv("FASTFLOW_NATIVE", "0")
        assert warnings_of(fresh.library) == [] and not fresh.is_worth_mending()
        assert "FASTFLOW_NATIVE=0" in fresh.why_not()

    def test_where_there_can_be_none_it_is_quiet(self, fresh, monkeypatch):
        monkeypatch.setattr(sys, "platform", "win32")
        assert warnings_of(fresh.library) == [] and not fresh.is_worth_mending()
        assert "Windows" in fresh.why_not()


class TestUnusable:
    def test_not_a_library(self, fresh):
        fresh.FILE.write_bytes(b"not a library")
        (message,) = warnings_of(fresh.library)
        assert "does not load" in message and fresh.REINSTALL in message

    def test_another_library(self, fresh, compile_cpp, tmp_path):
        source = tmp_path / "other.cpp"
        source.write_text("int other;\n")
        compile_cpp("-shared", "-fPIC", source).rename(fresh.FILE)
        (message,) = warnings_of(fresh.library)
        assert "does not load" in message and "fastflow_abi_version" in message

    def test_another_interface(self, fresh, compile_cpp, tmp_path):
        source = tmp_path / "newer.cpp"
        source.write_text(SOURCE % (native.ABI_VERSION + 1))
        compile_cpp("-shared", "-fPIC", source).rename(fresh.FILE)
        (message,) = warnings_of(fresh.library)
        assert f"has interface {native.ABI_VERSION + 1}, and this fastflow needs {native.ABI_VERSION}" in message


class TestLoaded:
    def test_what_it_says_of_itself(self):
        library = native.library() or pytest.skip(native.why_not())
        assert native.why_not() is None and not native.is_worth_mending()
        assert library.instruction_set in ("avx512", "avx2", "neon", "portable")
        assert native.describe() == f"{library.instruction_set}, loaded from {native.FILE}"

    def test_it_brings_no_second_openmp(self):
        """Two of them keep a pool of threads each, and both pools wait on the same cores."""
        if native.library() is None or not sys.platform.startswith("linux"):
            pytest.skip(native.why_not() or "needs Linux's list of what a process has mapped")
        program = (
            "from pathlib import Path\nfrom fastflow_kernels.cpu import native\nassert native.library()\n"
            "mapped = {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}\nprint(len(mapped))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() in ("0", "1")
