"""vLLM servers under several ranks: the first speaks to them, with weights that all gather."""

from __future__ import annotations

import pytest

from rank_worker import spawn
from server_runs import needs_httpx
from servers_of_ranks import all_of_servers


@needs_httpx
@pytest.mark.distributed
def test_two_ranks_share_a_server():
    spawn(2, all_of_servers)
