"""Sample on running vLLM servers: weights go through a directory that they see, responses come over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from fastflow.data.trajectory import Group, Trajectory, name_of
from fastflow.errors import FastflowError, need
from fastflow.models.layers.rope import advice_for_servers
from fastflow.models.packed import PackedModel
from fastflow.rollout.admission import check_requests
from fastflow.rollout.probe import logprobs_of, probe_for
from fastflow.rollout.sampler import OnProgress, Request, SamplingParams, unheard
from fastflow.rollout.server.background import BackgroundLoop, Work
from fastflow.rollout.server.client import Client, Unreachable
from fastflow.rollout.server.completion import request_body, trajectory_of
from fastflow.rollout.server.dispatch import Round
from fastflow.rollout.server.http import Backoff
from fastflow.rollout.server.server import OURS, Server, Weights
from fastflow.rollout.server.weights import WeightFolder, help_to_write

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.1
OTHERS_SECONDS = 3.0  # minimum wait for further servers once one has the weights


class ServerSampler:
    """Samples on vLLM servers that run already, and that no other run uses.

    eos_ids: tokens that end a response. context: maximum tokens of prompt and response together. servers: addresses.
    folder: a directory that the servers see under the same path; None suits servers on this machine. max_sequences:
    maximum concurrent requests at each server. silence: seconds without progress after which a server counts as hung,
    and after which a round fails. on_progress: receives, in the thread of `finish`, the number of responses that
    finished since the last call.

    Under several ranks the first speaks to the servers, for all: it writes the weights that the ranks gather, deals the
    requests, and hands out the answers. Every method but `close` is a collective then; the thread that waits for the
    servers enters none.
    """

    def __init__(
        self,
        policy: PackedModel,
        *,
        eos_ids: Sequence[int],
        context: int,
        servers: Sequence[str],
        folder: str | None = None,
        max_sequences: int = 256,
        silence: float = 300.0,
        on_progress: OnProgress = unheard,
    ):
        self._policy, self._ranks = policy, policy.ranks
        self._eos_ids = tuple(sorted(eos_ids))
        self._context = context
        self._max_sequences = max_sequences
        self._silence = silence
        self._on_progress = on_progress
        self._run = secrets.token_hex(4)
        self._loads = itertools.count()
        self._requests: Sequence[Request] = ()
        self._round: Work[list[Trajectory]] | None = None
        self._late: set[asyncio.Task[None]] = set()  # servers that still take weights
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        if advice := advice_for_servers(policy.causal_lm.config, context):
            logger.warning("%s", advice)
        self._servers: list[Server] = []
        self._folder: WeightFolder | None = None
        self._background: BackgroundLoop | None = None
        try:
            with self._ranks.together():
                addresses = read_addresses(servers)
                need("httpx", extra="server", purpose="rollout.engine = vllm-server")
                if self._ranks.is_first:
                    self._folder = WeightFolder(folder)
                    self._background = BackgroundLoop("fastflow-vllm-servers")
                    self._servers = [
                        Server(Client(address, connections=max_sequences, patience=silence), context)
                        for address in addresses
                    ]
            self.load_weights(policy)
        except BaseException:
            self.close()
            raise

    def load_weights(self, policy: PackedModel) -> None:
        """Give the policy's weights to each server that answers; the others take them before they serve again.

        Raises FastflowError where no server takes them, and where one gives other log-probs than the trainer.
        """
        self._policy = policy
        probe = probe_for(policy, self._context)
        logprobs = logprobs_of(policy, probe)
        with self._ranks.together():
            if self._folder is None or self._background is None:
                help_to_write(policy)
            else:
                self._weights = Weights(
                    directory=self._folder.write(policy),  # it fails after the last collective only
                    tag=f"{OURS}{self._run}-{next(self._loads)}",
                    version=policy.version,
                    probe=probe,
                    logprobs=logprobs,
                    dtype=policy.dtype,
                )
                self._background.run(self._make_some_ready(self._weights))
                self._folder.keep_only(self._weights.directory)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request. Raises FastflowError for an unfit prompt and where no server answers."""
        self.begin(requests, params)
        return self.finish()

    def begin(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Start sampling and return at once; `finish` waits."""
        with self._ranks.together():
            check_requests(self._policy, requests, params)
        self._requests, self._finished = requests, queue.SimpleQueue()
        if self._background is not None:
            self._round = self._background.start(self._sample(requests, params))

    def finish(self) -> list[Group]:
        """Wait for the groups of `begin`. Ctrl-C cancels the requests that are under way at the servers."""
        answers: list[Trajectory] = []
        with self._ranks.together():
            if self._ranks.is_first:
                answers = self._answers()
        trajectories = iter(self._ranks.from_first(answers))
        return [Group(request.prompt, tuple(next(trajectories) for _ in request.seeds)) for request in self._requests]

    def _answers(self) -> list[Trajectory]:
        work, self._round = self._round, None
        if work is None:
            raise RuntimeError("finish() needs a begin() before it")
        try:
            while not work.done_within(PROGRESS_SECONDS):
                self._show_progress()
            answers = work.result()
        except BaseException:
            work.cancel()
            raise
        self._show_progress()
        return answers

    def close(self) -> None:
        """Cancel what is under way, and delete the weight files. The servers keep the weights that they have."""
        if self._round is not None:
            self._round.cancel()
            self._round = None
        if self._background is not None:
            if not self._background.closed:
                self._background.run(self._close_clients())
            self._background.close()
        if self._folder is not None:
            self._folder.close()

    async def _sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Trajectory]:
        jobs = [
            (request.prompt.ids.tolist(), seed, replace(params, max_response_tokens=request.length_limit(params)))
            for request in requests
            for seed in request.seeds
        ]
        names = [
            name_of(request.prompt, number) for number, request in enumerate(requests, start=1) for _ in request.seeds
        ]
        weights = self._weights

        async def ask(server: Server, job: int) -> Trajectory:
            ids, seed, limited = jobs[job]
            answer = await server.client.complete(request_body(server.model, ids, seed, limited, self._eos_ids))
            return trajectory_of(
                answer,
                address=server.address,
                seed=seed,
                params=limited,
                eos_ids=self._eos_ids,
                vocabulary=self._policy.vocab_size,
                weight_version=weights.version,
            )

        return await Round(
            self._servers,
            len(jobs),
            ask=ask,
            name_of=names.__getitem__,
            make_ready=lambda server: server.make_ready(weights),
            still_holds=lambda server: server.still_holds(weights),
            max_sequences=self._max_sequences,
            silence=self._silence,
            on_finished=lambda: self._finished.put(1),
        ).run()

    async def _make_some_ready(self, weights: Weights) -> None:
        """Wait until one server holds the weights, and as long again for the others, which may take them later too."""
        deadline, backoff, told = time.monotonic() + self._silence, Backoff(), set[str]()
        while True:
            failures = await self._offer(weights)
            for failure in failures:
                if str(failure) not in told:
                    told.add(str(failure))
                    logger.warning("%s; it takes the weights when it answers again", failure)
            if len(failures) < len(self._servers):
                return
            if time.monotonic() > deadline:
                raise FastflowError(
                    f"no server took the weights within {self._silence:g} seconds: {'; '.join(map(str, failures))}; "
                    "check rollout.servers, and that vLLM runs there with VLLM_SERVER_DEV_MODE=1, or raise "
                    "rollout.silence if they were only slow"
                )
            await backoff.pause()

    async def _offer(self, weights: Weights) -> list[Unreachable]:
        """Offer the weights to all servers. Returns what kept each of the others from taking them."""
        for task in self._late:
            task.cancel()
        started = time.monotonic()
        tasks = {asyncio.ensure_future(server.make_ready(weights)): server.address for server in self._servers}
        waiting, ready = set(tasks), False
        try:
            while waiting and not ready:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                ready = any(task.exception() is None for task in done)
            if waiting:
                grace = max(OTHERS_SECONDS, time.monotonic() - started)
                _, waiting = await asyncio.wait(waiting, timeout=grace)
            failures = []
            for task in tasks.keys() - waiting:
                failure = task.exception()
                if isinstance(failure, Unreachable):
                    failures.append(failure)
                elif failure is not None:
                    raise failure
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        finally:
            for task in waiting:
                task.add_done_callback(_forget)
            self._late = waiting
        late = [
            Unreachable(f"the server at {tasks[task]} is slower than others to take the weights") for task in waiting
        ]
        return failures + late

    async def _close_clients(self) -> None:
        await asyncio.gather(*(server.client.close() for server in self._servers), return_exceptions=True)

    def _show_progress(self) -> None:
        finished = 0
        while not self._finished.empty():
            finished += self._finished.get()
        if finished:
            self._on_progress(finished)


def _forget(task: asyncio.Task[None]) -> None:
    """Read the failure of a late server, so that asyncio does not log it: the next attempt finds it again."""
    if not task.cancelled():
        task.exception()


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:  # a port above 65535 or without digits, an open bracket
        return False


def read_addresses(servers: Sequence[str]) -> list[str]:
    """Return each address once, with its scheme and without /v1. Raises FastflowError for what is no address."""
    addresses = []
    for text in servers:
        address = text.strip().rstrip("/").removesuffix("/v1")
        if "://" not in address:
            address = f"http://{address}"
        if not _is_address(address):
            raise FastflowError(f"rollout.servers holds {text!r}, which is no address; write it as host:8000")
        if address not in addresses:
            addresses.append(address)
    if not addresses:
        raise FastflowError("rollout.servers is empty; name at least one address such as localhost:8000")
    return addresses
