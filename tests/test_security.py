"""No code from data or checkpoints, by the syntax tree of all that is installed; servers on the loopback."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "fastflow", ROOT / "kernels" / "fastflow_kernels"]
FILES = [file for package in PACKAGES for file in sorted(package.rglob("*.py"))]
RUNS_CODE = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "cloudpickle.load", "cloudpickle.loads",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all", "subprocess.getoutput", "torch.package",
    "torch.jit.load", "torch.hub.load", "pandas.read_pickle",
}  # fmt: skip
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
# of these a name is used, and nothing is loaded by them
ALLOWED_IMPORTS = {("fastflow/rollout/vllm/process.py", "pickle"): {"pickle.UnpicklingError"}}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(source: str, name: str) -> Iterator[str]:
    """What a file does that could run code from outside."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in {module.split(".")[0] for module in modules} & MODULES:
                used = {dotted(part) for part in ast.walk(tree) if isinstance(part, ast.Attribute)}
                used = {entry for entry in used if entry.startswith(f"{module}.")}
                if isinstance(node, ast.ImportFrom) or used - ALLOWED_IMPORTS.get((name, module), set()):
                    yield f"{name}:{node.lineno} imports {module}"
        if not isinstance(node, ast.Call):
            continue
        called, where = dotted(node.func), f"{name}:{node.lineno}"
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in RUNS_CODE:
            yield f"{where} calls {called}"
        if called == "torch.load" and not is_true(options.get("weights_only")):
            yield f"{where} calls torch.load without weights_only=True"
        if called in ("numpy.load", "np.load") and "allow_pickle" in options:
            yield f"{where} lets numpy unpickle"
        if called.split(".")[0] == "subprocess" and "shell" in options:
            yield f"{where} runs a shell"
        if is_true(options.get("trust_remote_code")):
            yield f"{where} always trusts remote code"
        if re.search(r"\bAutoModel\w*\.from_pretrained$", called) and not is_true(options.get("use_safetensors")):
            yield f"{where} may load pickles"


def is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_runs_code_from_outside(file):
    assert not list(findings(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)", "torch.load(f, weights_only=False)", "import pickle\npickle.loads(b)",
        "from pickle import loads",
        "eval(x)", "exec(x)", "yaml.load(x, Loader)", "subprocess.run(x, shell=True)", "np.load(f, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=True)", "AutoModel.from_pretrained(p)",
        "transformers.AutoModelForCausalLM.from_pretrained(p, use_safetensors=x)", "import os\nos.system(x)",
    ],
)  # fmt: skip
def test_the_test_itself_sees_them(source):
    assert list(findings(source, "x.py"))


class TestServers:
    def test_none_of_ours_listens(self):
        """fastflow is a client: it starts no server, on the loopback or elsewhere."""
        for file in FILES:
            calls = {
                dotted(node.func).split(".")[-1]
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Call)
            }
            assert not calls & {"listen", "HTTPServer", "ThreadingHTTPServer", "start_server", "create_server"}, file

    def test_no_address_of_all_interfaces(self):
        for file in [*FILES, *ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("examples/**/*.*")]:
            if file.suffix in (".py", ".md", ".yaml"):
                assert not re.search(r"0\.0\.0\.0|\"::\"", file.read_text(encoding="utf-8")), file

    def test_the_pages_start_servers_on_the_loopback(self):
        blocks = [
            block
            for page in ROOT.glob("docs/*.md")
            for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        ]
        served = [block for block in blocks if "vllm serve" in block or "api_server" in block]
        assert served and all("--host 127.0.0.1" in block for block in served)

    def test_the_vllm_process_is_told_of_the_loopback(self):
        from fastflow.rollout.vllm.child import DEFAULT_ENVIRONMENT

        assert DEFAULT_ENVIRONMENT["VLLM_HOST_IP"] == "127.0.0.1"


class TestAudit:
    @pytest.fixture
    def report(self):
        return runpy.run_path(str(ROOT / ".ci" / "audit.py"))["report"]

    def test_a_vulnerability_is_an_error(self, report, capsys):
        flaw = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
        assert report([{"name": "a", "version": "1.0", "vulns": [flaw]}, {"name": "b", "skip_reason": "absent"}]) == 1
        assert capsys.readouterr().out == (
            "a 1.0: PYSEC-1, mended in 2.0\n1 known vulnerabilities in 1 of 2 packages\n"
        )

    def test_nothing_found_is_none(self, report, capsys):
        assert report([{"name": "a", "version": "1.0", "vulns": []}]) == 0
        assert "0 known vulnerabilities in 1 of 1 packages" in capsys.readouterr().out

    def test_nothing_looked_at_is_said(self, report, capsys):
        assert report([{"name": "a", "skip_reason": "not found"}]) == 0
        assert capsys.readouterr().out.startswith("skipped: ")
