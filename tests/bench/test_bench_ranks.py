"""`python -m bench.ranks` on a tiny model: what it measures, not how fast it is."""

from __future__ import annotations

import json

import pytest

from bench import ranks


@pytest.mark.distributed
def test_the_collectives_of_an_update_are_found_and_the_ratio_is_of_what_is_written(tmp_path, capsys):
    file = tmp_path / "ranks.json"
    sizes = ["--layers", "2", "--width", "32", "--vocabulary", "64", "--prompts", "1", "--tokens", "100000"]
    code = ranks.main([*sizes, "--repeats", "2", "--json", str(file)])
    found = json.loads(file.read_text())
    # one micro-batch: the base is gathered once, the policy at least once, and its gradient is reduced
    assert found["bytes"] >= 3 * 4 * found["parameters"]
    least = {what: min(times) for what, times in found["seconds"].items()}
    assert found["ratio"] == least["update"] / (least["half"] + least["communication"])
    assert code == int(found["ratio"] > ranks.MOST)
    assert f"{found['ratio']:.3f} times" in capsys.readouterr().out


def test_one_rank_has_nobody_to_share_with():
    with pytest.raises(SystemExit):
        ranks.main(["--ranks", "1"])
