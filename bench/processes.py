"""Ranks of a benchmark on one machine: each a process of its own, and the first reports."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

BeARank = Callable[[int, int, argparse.Namespace, Any], None]


def run_ranks(be_a_rank: BeARank, options: argparse.Namespace) -> Any:
    """Run `options.ranks` processes to their end, and return what the first has sent.

    be_a_rank: takes its rank, a free port of this machine for the group, the options, and a pipe for what it found.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    torch.multiprocessing.spawn(_run_rank, args=(be_a_rank, port, options, sender), nprocs=options.ranks)
    return receiver.recv()


def _run_rank(rank: int, be_a_rank: BeARank, port: int, options: argparse.Namespace, sender: Any) -> None:
    be_a_rank(rank, port, options, sender)
    os._exit(0)  # torch's threads may abort a rank at its exit, where another has ended first
