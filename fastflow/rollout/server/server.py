"""Give weights to one server, and check which weights it holds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastflow.errors import FastflowError
from fastflow.rollout.probe import check_agreement
from fastflow.rollout.server.client import Client, Unreachable, WorkerError
from fastflow.rollout.server.http import Backoff
from fastflow.rollout.server.plugin import BACKEND

logger = logging.getLogger(__name__)

REMEDY = (
    f'install fastflow beside vLLM on that server and start it with --weight-transfer-config \'{{"backend": '
    f'"{BACKEND}"}}\', since reload_weights does not reach all weights of every model'
)
OTHER_BACKEND = ("weight transfer not configured", "invalid init_info")  # in vLLM's words
UNSEEN = ("fastflow: this server sees no", "Repo id must be")  # the second: vLLM takes the path for a hub id
OURS = "fastflow-"  # the tags of all runs begin with it
CACHE_ATTEMPTS = 6


@dataclass(frozen=True)
class Weights:
    """One version of the weights on disk, and what proves that a server holds it.

    directory: from WeightFolder. tag: the name of this version of this run. probe: token ids (P,). logprobs: (P - 1,)
    of these tokens after the first, by the trainer. dtype: the type in which the trainer computes.
    """

    directory: Path
    tag: str
    version: int
    probe: np.ndarray
    logprobs: np.ndarray
    dtype: torch.dtype


class Server:
    """A server of the run, through its client.

    context: tokens of prompt and response together; the server must have room for them.
    """

    def __init__(self, client: Client, context: int):
        self.client = client
        self.address = client.address
        self.model = ""
        self._context = context
        self._introduction = ""
        self._transfers = False  # whether it takes weights by vLLM's weight-transfer API, not by reload_weights
        self._holds = ""  # the tag of the weights that it has proved to hold
        self._giving = asyncio.Lock()

    async def make_ready(self, weights: Weights) -> None:
        """Make sure that the server holds these weights; a restarted server gets them again.

        Raises Unreachable where another attempt may help, and FastflowError where the server cannot serve.
        """
        async with self._giving:
            await self._make_ready(weights)

    async def still_holds(self, weights: Weights) -> bool:
        """Return False for a restarted server. Raises FastflowError where another run gave it other weights."""
        said = await self._says_it_holds()
        if said != weights.tag and said.startswith(OURS):
            raise FastflowError(
                f"another run changed the weights of the server at {self.address} during a round; a run needs its "
                "servers to itself"
            )
        return said == weights.tag

    async def _make_ready(self, weights: Weights) -> None:
        await self.client.check_health()
        said = await self._says_it_holds()
        if self._holds == weights.tag == said:
            return
        if not self.model or said != self._holds:  # new, or restarted
            await self._introduce(weights.directory.parent)
        self._holds = ""
        await self._give(weights)
        self._holds = weights.tag

    async def _says_it_holds(self) -> str:
        return str(await self.client.get("/weight_info", "weight_version"))

    async def _introduce(self, folder: Path) -> None:
        """Find out what the server serves, and how it takes weights."""
        models = await self.client.get("/v1/models", "data")
        try:
            (entry, *_) = models
            model, room = str(entry["id"]), int(entry.get("max_model_len") or self._context)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise FastflowError(
                f"the server at {self.address} names no model: it gave {models!r:.100} as data of /v1/models; check "
                "that vLLM listens there"
            ) from error
        if room < self._context:
            raise FastflowError(
                f"the server at {self.address} has room for {room} tokens, but the longest prompt and "
                f"rollout.max_response_tokens need {self._context}; start it with --max-model-len {self._context} or "
                "lower data.max_prompt_tokens or rollout.max_response_tokens"
            )
        self.model = model
        self._transfers = await self._takes_transfers(folder)
        way = "its weight-transfer API" if self._transfers else "reload_weights"
        version = await self.client.get("/version", "version")
        introduction = f"the server at {self.address} runs vLLM {version} and takes weights by {way}"
        if introduction != self._introduction:
            logger.info("%s", introduction)
            self._introduction = introduction

    async def _takes_transfers(self, folder: Path) -> bool:
        try:
            await self._announce(folder)
        except WorkerError as error:
            if any(text in str(error).lower() for text in OTHER_BACKEND):
                return False
            raise self._refusal(error, folder) from error
        return True

    async def _announce(self, folder: Path) -> None:
        await self.client.post("/init_weight_transfer_engine", {"init_info": {"folder": str(folder)}})

    def _refusal(self, error: WorkerError, path: Path) -> FastflowError:
        if any(text in str(error) for text in UNSEEN):
            return FastflowError(
                f"the server at {self.address} does not see the weights in {path}; set rollout.shared_folder to a "
                "directory that it can read under the same path"
            )
        return FastflowError(f"{error}; check that it serves the same model as model.path")

    async def _give(self, weights: Weights) -> None:
        client = self.client
        await client.post("/pause", mode="abort")  # requests that an interrupted run left must not see half a load
        try:
            await (self._transfer(weights) if self._transfers else self._reload(weights))
            await self._forget_prefixes()
        except WorkerError as error:
            raise self._refusal(error, weights.directory) from error
        finally:
            await client.resume()
        if (said := await self._says_it_holds()) != weights.tag:
            raise Unreachable(f"the server at {self.address} says that it holds the weights {said}, not {weights.tag}")
        await self._prove(weights)

    async def _transfer(self, weights: Weights) -> None:
        client = self.client
        await self._announce(weights.directory.parent)
        try:
            await client.post("/start_weight_update")
        except WorkerError as error:
            if "already active" not in str(error):
                raise
            await self._abandon_update()
            await client.post("/start_weight_update")
        for file in sorted(weights.directory.glob("*.safetensors")):
            await client.post("/update_weights", {"update_info": {"file": str(file)}})
        await client.post("/finish_weight_update", {"weight_version": weights.tag})

    async def _abandon_update(self) -> None:
        """End an update that another trainer left unfinished: vLLM ends it when it refuses a file."""
        with contextlib.suppress(WorkerError):
            await self.client.post("/update_weights", {"update_info": {"file": ""}})

    async def _reload(self, weights: Weights) -> None:
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(weights.directory)}}
        await self.client.post("/collective_rpc", call)
        await self.client.post("/update_weight_version", {"new_version": weights.tag})

    async def _forget_prefixes(self) -> None:
        backoff = Backoff()
        for _ in range(CACHE_ATTEMPTS):  # fails while an aborted request still holds blocks
            if (await self.client.post("/reset_prefix_cache", reset_external="true"))["success"]:
                return
            await backoff.pause()
        raise Unreachable(f"the server at {self.address} did not empty its prefix cache")

    async def _prove(self, weights: Weights) -> None:
        theirs = await self.client.prompt_logprobs(self.model, weights.probe.tolist())
        name = f"the server at {self.address}"
        try:
            check_agreement(theirs, weights.logprobs, dtype=weights.dtype, engine=name, version=weights.version)
        except FastflowError as error:
            dtype = str(weights.dtype).removeprefix("torch.")
            other = f"or it computes in another type than the trainer: start it with --dtype {dtype}"
            raise FastflowError(f"{error}; {other}" + ("" if self._transfers else f"; or {REMEDY}")) from error
