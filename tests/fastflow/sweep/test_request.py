"""How a sweep is asked for, and what is refused before its first run."""

from __future__ import annotations

import pytest

from fastflow.cli import main
from fastflow.errors import FastflowError
from fastflow.sweep.request import STUDIES, read_request
from sweep_runs import options, request

FILE = """
preset: demo
optim:
  lr: 1e-4
model: {path: MODEL}
grid:
  objective.alpha: [1, 2.5]
  optim.schedule: [constant, linear]
variants:
  calm: {rollout.sleep: off}
  wild:
    importance: {clip_high: 0.5}
seeds: [3]
"""


def values(found, section: str, name: str) -> list:
    return [getattr(getattr(run.config, section), name) for run in found.runs]


def test_every_value_reaches_its_run(tmp_path):
    found = request(tmp_path, "--grid", "objective.alpha=1,2", "--grid=optim.eps=1e-3,1e-4", "--seeds=0,7")
    assert values(found, "objective", "alpha") == [1, 1, 2, 2] * 2
    assert values(found, "optim", "eps") == [1e-3, 1e-4] * 4
    assert values(found, "run", "seed") == [0] * 4 + [7] * 4
    assert {run.config.run.output for run in found.runs} == {str(tmp_path / "sweep/runs" / r.name) for r in found.runs}
    assert values(found, "run", "steps") == [3] * 8  # a setting of all runs


def test_a_file_of_settings_grid_variants_and_seeds(tmp_path):
    (tmp_path / "sweep.yaml").write_text(FILE)
    found = read_request(["--config", str(tmp_path / "sweep.yaml"), "--run.steps=5"])
    assert [run.name for run in found.runs][:3] == [
        "calm_alpha-1_schedule-constant_seed-3",
        "calm_alpha-1_schedule-linear_seed-3",
        "calm_alpha-2.5_schedule-constant_seed-3",
    ]
    assert values(found, "rollout", "sleep") == ["off"] * 4 + ["auto"] * 4
    assert values(found, "importance", "clip_high") == [0.28] * 4 + [0.5] * 4
    assert values(found, "objective", "alpha") == [1, 1, 2.5, 2.5] * 2
    assert set(values(found, "optim", "lr")) == {1e-4} and set(values(found, "run", "steps")) == {5}
    assert set(values(found, "batch", "prompts_per_step")) == {16}  # the preset's


def test_dotted_names_and_sections_of_a_file_mix(tmp_path):
    text = "objective.format_penalty: -2\nobjective: {log_z: group_mean}\nrun.threads: 3\nrun:\n"
    (tmp_path / "sweep.yaml").write_text(text + "variants: {one: {objective.alpha: 3}}\nseeds: [4]\n")
    (run,) = request(tmp_path, "--config", str(tmp_path / "sweep.yaml")).runs
    objective = run.config.objective
    assert (objective.format_penalty, objective.log_z, objective.alpha) == (-2, "group_mean", 3)
    assert (run.config.run.threads, run.config.run.seed, run.config.run.steps) == (3, 4, 3)


def test_every_setting_of_a_study_reaches_its_runs(tmp_path):
    study = STUDIES["figure-3"]
    for run in read_request(["--preset=figure-3", f"--output={tmp_path}"]).runs:
        own = study.settings | study.inputs(tmp_path) | study.variants[run.group]
        found = {name: getattr(getattr(run.config, name.split(".")[0]), name.split(".")[1]) for name in own}
        assert found | {"run.output": ""} == own | {"run.output": ""}


def test_a_study_takes_seeds_and_no_grid(tmp_path):
    study = ["--preset=figure-3", f"--output={tmp_path}"]
    found = read_request([*study, "--seeds=7,8"])
    assert set(values(found, "run", "seed")) == {7, 8} and len(found.runs) == 10
    with pytest.raises(FastflowError, match=r"--preset figure-3 is a whole sweep .*--grid .*leave one of them out"):
        read_request([*study, "--grid", "objective.alpha=2,4"])


def test_a_study_says_which_settings_are_not_its_own(tmp_path, capsys):
    study = ["sweep", "--preset=figure-3", f"--output={tmp_path}", "--dry-run"]
    assert main([*study, "--run.steps", "5", "--objective.format_pattern=null", "--run.keep=2"]) == 0
    told, first, *_ = capsys.readouterr().out.splitlines()
    assert told.startswith("run.steps = 5, objective.format_pattern = null: not the study's own settings")
    assert "5 steps" in first
    steps = f"--run.steps={STUDIES['figure-3'].settings['run.steps']}"
    assert main([*study, "--run.keep=2", "--run.threads=1", "--model.device=cpu", steps]) == 0
    assert "own settings" not in capsys.readouterr().out


def test_a_study_makes_its_own_inputs(tmp_path):
    with pytest.raises(FastflowError, match=r"^--model\.path: --preset figure-3 makes its own .*leave it out"):
        read_request(["--preset=figure-3", f"--output={tmp_path}", "--model.path=other"])


def test_seeds_of_the_command_line_replace_those_of_the_file(tmp_path):
    (tmp_path / "sweep.yaml").write_text(FILE)
    found = read_request(["--config", str(tmp_path / "sweep.yaml"), "--seeds", "8,9"])
    assert set(values(found, "run", "seed")) == {8, 9}


def test_values_with_commas_stand_in_a_list(tmp_path):
    found = request(tmp_path, "--grid", 'objective.format_pattern=["a,b", null]', "--grid", "optim.betas=[[0.8, 0.9]]")
    assert values(found, "objective", "format_pattern") == ["a,b", None]
    assert values(found, "optim", "betas") == [(0.8, 0.9)] * 2


REFUSED = [
    (["--grid", "objective.alpa=1"], "objective.alpa, which is no setting: did you mean objective.alpha?"),
    (["--grid", "objective.alpha=1,-2"], "run alpha--2: objective.alpha is -2, but must be above 0"),
    (["--grid", "objective.alpha=1,x"], "run alpha-x: "),
    (["--grid", "objective.name=powerflow,powerflo"], "run name-powerflo: "),
    (["--grid", "objective.alpha"], "has no values; write SETTING=VALUE,VALUE"),
    (["--grid", "objective.alpha=1,,2"], "has an empty value"),
    (["--grid", "objective.alpha=[1"], "is not a list of values"),
    (["--grid", "objective.alpha=1,1"], "the value 1 twice"),
    (["--grid", "run.output=a,b"], "use --output for that of the sweep"),
    (["--run.output=a"], "use --output for that of the sweep"),
    (["--run.overwrite=true"], "choose another --output"),
    (["--resume", "auto"], "the same fastflow sweep again goes on by itself"),
    (["--grid", "optim.lr=1,2"], "--optim.lr is given, and the grid gives it too"),
    (["--optim.rate=1"], "unknown option --optim.rate"),
    (["--jobs=0"], "--jobs is 0, but must be from 1"),
    (["--jobs=many"], "invalid int value: 'many'"),
    (["--grid", "objective.alpha=1,1.0"], "runs alpha-1 and alpha-1.0 have the same settings; leave one of them out"),
    (["--seeds=0,x"], "run seed-x: "),
    (["--preset=demos"], "preset 'demos' is unknown: did you mean demo?"),
    (["--model.path="], "model.path is not set"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_refused_before_the_first_run(more, words, tmp_path, capsys):
    assert main(["sweep", *options(tmp_path), *more]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and "Traceback" not in told
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: [1]", "must map settings to lists"),
        ("grid: {objective.alpha: 2}", "must be a list of values"),
        ("seeds: 3", "must be a list, such as"),
        ("variants: {calm: 1}", "variants must map names to settings"),
        (
            "variants: {calm: {objective.alpha: 3}}\ngrid: {objective.alpha: [2, 4]}",
            "the variant calm sets objective.alpha, and the grid gives it too; leave one of them out",
        ),
        (
            "variants: {calm: {objective: {alpha: 3}}, wild: {objective: {alpha: 3.0}}}",
            "runs calm and wild have the same settings",
        ),
        ("optim: {rate: 1}", "unknown setting optim.rate"),
        ("- 1", "must hold sections"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_file_is_refused_by_its_name_or_its_key(text, words, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(FastflowError, match=words) as refused:
        read_request([*options(tmp_path), "--config", str(file)])
    assert "/fastflow-sweep-" not in str(refused.value)  # the name of a file that only this reader knows


def test_what_is_missing_is_found_before_the_first_run(tmp_path, capsys):
    words = [*options(tmp_path), "--grid=objective.format_check=nowhere:check,null"]
    assert main(["sweep", *words]) == 2
    assert "run format_check-nowhere-check: " in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_data_file_that_is_missing_is_found_before_the_first_run(tmp_path, capsys):
    words = ["sweep", *options(tmp_path), f"--data.path={tmp_path / 'nowhere.jsonl'}"]
    assert main([*words, "--dry-run"]) == 0  # as fastflow train --dry-run: it may lie on the machine of the runs
    assert main(words) == 2
    assert "nowhere.jsonl does not exist; check data.path" in capsys.readouterr().err


def test_a_dry_run_lists_the_runs_and_makes_nothing(tmp_path, capsys):
    words = [*options(tmp_path), "--grid=objective.alpha=1,2", "--dry-run"]
    assert main(["sweep", *words]) == 0
    told = capsys.readouterr().out
    assert "1  alpha-1: alpha 1; seed 0, 3 steps\n2  alpha-2: alpha 2; seed 0, 3 steps\n2 runs in 2 groups" in told
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_reads(name, tmp_path, capsys):
    assert main(["sweep", "--preset", name, "--dry-run", f"--output={tmp_path / 'study'}"]) == 0
    study = STUDIES[name]
    count = len(study.variants) * len(study.seeds)
    assert f"{count} runs in {len(study.variants)} groups" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()
    with pytest.raises(FastflowError, match="leave one of them out"):
        read_request(["--preset", name, "--config", "sweep.yaml"])
