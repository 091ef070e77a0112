"""`python -m bench.shards` on a tiny head: what it counts, not how fast it is."""

from __future__ import annotations

import pytest

from bench import shards


@pytest.mark.distributed
def test_it_counts_the_meetings_of_two_ranks_and_compares_the_bits(capsys):
    assert shards.main(["--shape", "48x8x31", "--block-rows", "64", "--repeats", "1"]) == 0
    said = capsys.readouterr().out
    for meeting in ("waited for: reduction", "waited for: gather", "under way: reduction"):
        assert f"   1 {meeting}" in said
    assert "the same bits: yes" in said


def test_one_rank_has_nobody_to_share_with():
    with pytest.raises(SystemExit):
        shards.main(["--ranks", "1"])
