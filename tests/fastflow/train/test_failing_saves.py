"""A save that fails leaves the one before it whole and says why in a sentence; what was trained is not lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from cli_runs import lines_in, options, settings, start
from fastflow import cli
from fastflow.config.reader import read_config
from fastflow.errors import FastflowError
from fastflow.train.saves import rescue
from fastflow.train.trainer import Trainer
from small_models import save_model

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# from step 3 on, no file may grow beyond so many bytes: what `ulimit -f` does, after the checks at the start
LIMITED = """
import resource
from fastflow.train import trainer
step = trainer.Trainer.step
def limited(self, number):
    if number == 3:
        self.saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAXIMUM, resource.RLIM_INFINITY))
    return step(self, number)
trainer.Trainer.step = limited
"""


def make(home, **changes) -> Trainer:
    config = read_config([f"--{name}={value}" for name, value in settings(home, **changes).items()])[0]
    return Trainer(config, Console(quiet=True))


def state_of(run) -> dict:
    return json.loads(((run / "policy").resolve().parent / "trainer" / "state.json").read_text())


def live(trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.learner.policy.model.named_parameters())


@pytest.mark.parametrize(
    ("limit", "rescued"), [(30_000, False), (80_000, True)], ids=["nothing fits", "the weights alone fit"]
)
def test_files_that_may_not_grow_any_more(limit, rescued, tmp_path):
    """`ulimit -f`: no signal kills the run, no traceback, and the last good state is named."""
    program = LIMITED.replace("MAXIMUM", str(limit))
    process = start(options(settings(tmp_path, run__save_every=2, run__steps=4)), program=program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, (out, err)
    assert err.count("\n") == 1 and "Traceback" not in out + err
    assert "File too large" in err and "ulimit -f" in err
    assert f"the policy after step 2 (2 updates) is in {tmp_path / 'run' / 'policy'}" in err
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert state_of(tmp_path / "run")["step"] == 2
    assert ("as raw safetensors" in err) == rescued
    if rescued:
        assert load_file(tmp_path / "run" / "rescued" / "weights-00001.safetensors")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]


def test_a_limit_that_no_save_fits_is_refused_at_the_start(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    process = start(options(settings(tmp_path)), program=limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1, (out, err)
    assert "ulimit -f" in err and "Traceback" not in out + err
    assert lines_in(tmp_path / "run" / "metrics.jsonl") == 0


def test_a_limit_that_the_small_files_meet_first(tmp_path):
    """The tokenizer, when the save is rehearsed."""
    process = start(options(settings(tmp_path)), before=["bash", "-c", 'ulimit -f 1; exec "$@"', "bash"])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1, (out, err)
    assert "tried before the first step" in err and "File too large" in err
    assert not (tmp_path / "run").exists()


PARTS = ["save_model", "save_tokenizer", "tensors", "generators", "manifest", "flush", "adapter", "publish"]


@pytest.mark.parametrize("failing", PARTS)
@pytest.mark.parametrize("error", [FULL, SafetensorError("IO error"), RuntimeError("shared tensors"), MemoryError()])
def test_a_save_that_fails_in_any_of_its_parts(failing, error, tmp_path, monkeypatch):
    trainer = make(tmp_path, run__steps=4, run__save_every=2, lora__rank=2)
    step, places = trainer.step, {
        "save_model": "fastflow.train.saves.export.Exporter._save_model",
        "save_tokenizer": "fastflow.train.saves.export.Exporter._save_tokenizer",
        "tensors": "fastflow.train.saves.checkpoint.write_tensors",
        "generators": "fastflow.train.saves.checkpoint._write_generators",
        "manifest": "fastflow.train.saves.checkpoint.write_manifest",
        "flush": "fastflow.train.saves.checkpoint.flush",
        "publish": "fastflow.run.checkpoints.Checkpoints.publish",
        "adapter": "peft.PeftModel.save_pretrained",
    }  # fmt: skip

    def fail(*_, **__):
        raise error

    def breaking(number):
        if number == 4:
            trainer.saver.wait()
            monkeypatch.setattr(places[failing], fail)
        return step(number)

    monkeypatch.setattr(trainer, "step", breaking)
    with pytest.raises(FastflowError) as caught:
        trainer.run()
    message = str(caught.value)
    assert message.startswith(f"the save of step 4 in {tmp_path / 'run'} failed: ")
    assert "the current trained LoRA adapters are in" in message
    assert f"the policy after step 2 (2 updates) is in {tmp_path / 'run' / 'policy'}" in message
    assert state_of(tmp_path / "run")["step"] == 2
    rescued = load_file(tmp_path / "run" / "rescued" / "weights-00001.safetensors")
    trained = {name: weight for name, weight in live(trainer).items() if weight.requires_grad}
    assert rescued.keys() == trained.keys()
    assert all(torch.equal(rescued[name], trained[name]) for name in trained)


def test_an_interrupted_run_that_cannot_be_saved_keeps_its_exit_code(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    step = trainer.step

    def stopping(number):
        if number < 3:
            return step(number)
        monkeypatch.setattr("fastflow.train.saves.checkpoint.flush", lambda directory: (_ for _ in ()).throw(FULL))
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "step", stopping)
    with pytest.raises(FastflowError, match=r"interrupted; the save of step 2 .* failed: .*No space left") as caught:
        trainer.run()
    assert caught.value.exit_code == 130
    assert "no policy was saved before" in str(caught.value)


def test_weights_that_fit_nowhere_in_the_run_go_to_the_temporary_files(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(rescue.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    (tmp_path / "run" / "rescued").write_text("")  # no directory can be made there
    sentence = rescue.write_raw(trainer.saver, trainer.learner.policy, tmp_path / "run")
    (target,) = (tmp_path / "elsewhere").iterdir()
    assert target.name.startswith("fastflow-rescued-run-")
    assert f"the current trained weights are in {target}" in sentence
    rescued = load_file(target / "weights-00001.safetensors")
    assert all(torch.equal(rescued[name], weight) for name, weight in live(trainer).items())
    rescue.write_raw(trainer.saver, trainer.learner.policy, tmp_path / "run")
    assert (
        len(list((tmp_path / "elsewhere").iterdir())) == 2
    )  # the first one stays: it may be another run's of that name
    (tmp_path / "full").write_text("")
    monkeypatch.setattr(rescue.tempfile, "gettempdir", lambda: str(tmp_path / "full"))
    assert "could not be written anywhere else" in rescue.write_raw(
        trainer.saver, trainer.learner.policy, tmp_path / "run"
    )
    trainer.close()


def test_a_run_whose_last_save_fails_is_not_done(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    monkeypatch.setattr("fastflow.train.saves.checkpoint.flush", lambda directory: (_ for _ in ()).throw(FULL))
    with pytest.raises(FastflowError, match="the save of step 3"):
        trainer.run()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["phase"], status["step"], status["steps"]) == ("stopped", 3, 3)


def test_what_cannot_be_closed_keeps_nothing_else_open(tmp_path, monkeypatch):
    trainer, closed = make(tmp_path), []
    monkeypatch.setattr(trainer.judge, "close", lambda: (_ for _ in ()).throw(RuntimeError("a grader hangs")))
    monkeypatch.setattr(trainer.sampler, "close", lambda: closed.append(True))
    with pytest.raises(RuntimeError, match="a grader hangs"):
        trainer.close()
    assert closed and not (tmp_path / "run" / "run.lock").exists()


def test_raw_weights_are_cut_into_files(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    monkeypatch.setattr(rescue, "FILE_BYTES", 10_000)
    rescue.write_raw(trainer.saver, trainer.learner.policy, tmp_path / "run")
    files = sorted((tmp_path / "run" / "rescued").iterdir())
    assert len(files) > 3
    rescued = {name: weight for file in files for name, weight in load_file(file).items()}
    assert all(torch.equal(rescued[name], weight) for name, weight in live(trainer).items())
    trainer.close()


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples.jsonl"])
def test_a_disk_that_is_full_between_saves(what, tmp_path, monkeypatch):
    """The metrics do not fit any more; the policy, which is another matter, is tried."""
    trainer = make(tmp_path, run__samples_every=1)
    step = trainer.step

    def filling(number):
        if number == 2:
            (tmp_path / "run" / what).unlink()
            (tmp_path / "run" / what).symlink_to("/dev/full")
            if what == "metrics.jsonl":
                monkeypatch.setattr(recorder[0]._sinks[0], "_file", (tmp_path / "run" / what).open("a"))
        return step(number)

    recorder = []
    from fastflow.train import trainer as module

    make_recorder = module.make_recorder
    monkeypatch.setattr(
        module, "make_recorder", lambda *all, **after: recorder.append(make_recorder(*all, **after)) or recorder[0]
    )
    monkeypatch.setattr(trainer, "step", filling)
    with pytest.raises(FastflowError, match=r"cannot write to .*run \(No space left on device\).*is in .*policy"):
        trainer.run()
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")


@pytest.mark.slow  # a process a test
class TestDirectories:
    """Output directories that cannot be written are found before anything loads: the model's path is wrong as well."""

    NO_OVERRIDE = "from capabilities import drop_capabilities; drop_capabilities()"  # or root would write anywhere

    def refused(self, home, *words: str, output=None) -> None:
        if os.geteuid() == 0 and sys.platform != "linux":
            pytest.skip("root writes everywhere, and Linux alone has capabilities to take from it")
        program = self.NO_OVERRIDE if os.geteuid() == 0 else ""
        values = settings(home, **({"run__output": output} if output else {}))
        process = start([*options(values), "--model.path=/absent"], program=program)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2, (out, err)
        assert err.count("\n") == 1 and "Traceback" not in out + err
        for word in words:
            assert word in err

    def test_an_existing_empty_directory_that_cannot_be_written(self, tmp_path):
        (tmp_path / "run").mkdir(mode=0o555)
        self.refused(tmp_path, f"run.output = {tmp_path / 'run'} cannot be written (Permission denied)")

    def test_a_parent_that_cannot_be_written(self, tmp_path):
        (tmp_path / "parent").mkdir(mode=0o555)
        output = tmp_path / "parent" / "a" / "b"
        self.refused(tmp_path, f"run.output = {output} cannot be created (Permission denied", output=output)

    @pytest.mark.parametrize("output", ["/proc/run", "/sys/run"])
    def test_a_place_where_nobody_can_write(self, output, tmp_path):
        self.refused(tmp_path, f"run.output = {output} cannot be created", output=output)

    def test_a_parent_that_cannot_be_entered(self, tmp_path):
        save_model(tmp_path / "model")
        (tmp_path / "parent").mkdir(mode=0o600)
        output = tmp_path / "parent" / "run"
        self.refused(tmp_path, f"run.output = {output} cannot be created (Permission denied", output=output)

    @pytest.mark.parametrize(("name", "reason"), [("a" * 300, "File name too long"), ("loop/run", "File exists")])
    def test_names_that_no_directory_can_have(self, name, reason, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        self.refused(tmp_path, "run.output = ", f"cannot be created ({reason}", output=tmp_path / name)

    def test_a_link_to_nowhere(self, tmp_path):
        (tmp_path / "run").symlink_to(tmp_path / "absent")
        self.refused(tmp_path, f"run.output = {tmp_path / 'run'} cannot be created (File exists")

    def test_a_run_that_may_not_be_replaced(self, tmp_path, capsys):
        values = settings(tmp_path)
        assert cli.main(options(values)) == 0
        (tmp_path / "run").chmod(0o555)
        self.refused(tmp_path, "cannot be written")
        assert lines_in(tmp_path / "run" / "metrics.jsonl") == 3

    def test_an_empty_directory_is_taken(self, tmp_path):
        (tmp_path / "run").mkdir()
        assert cli.main(options(settings(tmp_path))) == 0

    def test_a_file_system_without_room(self, tmp_path):
        """A real one, where this machine lets one be mounted."""
        save_model(tmp_path / "model")
        (tmp_path / "run").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path / "run")]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            process = start(options(settings(tmp_path)))
            out, err = process.communicate(timeout=120)
            assert process.returncode == 2 and err.count("\n") == 1, (out, err)
            assert "MiB left, but a save of this run takes" in err
        finally:
            subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_a_finished_run_is_saved_once(tmp_path, monkeypatch):
    """save_every at the last step, and the final save, are one."""
    trainer = make(tmp_path, run__save_every=1, run__steps=2)
    saves, save = [], trainer.saver.save
    monkeypatch.setattr(trainer.saver, "save", lambda position: saves.append(position.step) or save(position))
    trainer.run()
    assert saves == [1, 2]
