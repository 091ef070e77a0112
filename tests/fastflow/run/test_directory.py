"""A run directory that is replaced stays a run's directory wherever that ends, and links in it are not followed."""

from __future__ import annotations

import pytest

from fastflow.config.schema import Config, RunConfig
from fastflow.errors import FastflowError
from fastflow.run import directory as module
from fastflow.run.directory import check_output, cut_back, lengths, prepare, reclaimable


@pytest.fixture
def run(tmp_path):
    """An earlier run, whose policy is a link to a place outside."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"years of work")
    run = tmp_path / "run"
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "policy").symlink_to(tmp_path / "elsewhere")
    (run / "metrics.jsonl").write_text("{}\n" * 5)
    (run / "config.yaml").write_text("run: {}\n")
    return run


def config(run) -> Config:
    return Config(run=RunConfig(output=str(run), overwrite=True))


def test_a_linked_policy_is_unlinked_and_not_emptied(run):
    prepare(run, config(run))
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run.parent / "elsewhere" / "model.safetensors").read_bytes() == b"years of work"


def test_what_a_link_names_is_not_counted_as_room(run):
    assert reclaimable(run) == len("{}\n" * 5) + len("run: {}\n")


def test_of_a_resumed_run_the_saves_alone_make_room(run):
    (run / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
    assert reclaimable(run, resumed=True) == 2


def test_it_stays_a_run_when_it_cannot_be_emptied(run, monkeypatch):
    def refuse(path):
        if path.name == "checkpoints":
            raise OSError(5, "Input/output error")
        remove(path)

    remove = module.remove
    monkeypatch.setattr(module, "remove", refuse)
    with pytest.raises(FastflowError, match="Input/output error"):
        prepare(run, config(run))
    check_output(run, overwrite=True)  # and not "not empty and not a run of fastflow"


def test_an_existing_run_is_refused_with_both_ways_on(run):
    with pytest.raises(FastflowError, match=r"--resume .*run to go on with it, or --run\.overwrite true"):
        check_output(run, overwrite=False)


def test_records_are_cut_to_what_they_were(run):
    sizes = lengths(run)
    assert sizes == {"metrics.jsonl": 15, "samples.jsonl": 0}
    (run / "samples.jsonl").write_text("later\n")
    (run / "samples").mkdir()
    for step in (2, 3):
        (run / "samples" / f"step-{step:06d}.txt").touch()
    (run / "bad").mkdir()
    for name in ("step-2.safetensors", "step-9.safetensors", "step-2.safetensors.new"):
        (run / "bad" / name).touch()
    of_the_user = [run / "samples" / "step-000003 (copy).txt", run / "bad" / "step-9.notes"]
    for path in of_the_user:
        path.touch()
    cut_back(run, config(run), step=2, sizes={**sizes, "metrics.jsonl": 6})
    assert lengths(run) == {"metrics.jsonl": 6, "samples.jsonl": 0}
    assert all(path.exists() for path in of_the_user)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-000002.txt", of_the_user[0].name]
    assert sorted(path.name for path in (run / "bad").iterdir()) == ["step-2.safetensors", of_the_user[1].name]
