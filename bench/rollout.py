"""vLLM under the trainer against vLLM and memory alone.

    python -m bench.rollout [--sync] [--sampling] [--repeats N] [--json FILE]

sync: `VllmSampler.load_weights` of a model of about 100 million parameters against one copy of as many bytes; the probe
that proves it rides in the next sample, for which the trainer computes its side meanwhile. sampling: tokens per second
of `VllmSampler.sample` against a bare `LLM.generate` in a process of its own, with the same settings, prompts and
seeds. Calls are interleaved; medians and their ratios are reported.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

SIZES = {  # width, layers, vocabulary
    "0.3M": (96, 2, 512),
    "20M": (384, 6, 16_000),
    "110M": (768, 12, 32_000),
}
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 64
PROMPTS, RESPONSES = 16, 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--sync", action="store_true", help="only the weight sync")
    parser.add_argument("--sampling", action="store_true", help="only sampling")
    parser.add_argument("--size", choices=SIZES, action="append", help="model for sampling (default: 0.3M and 20M)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)

    from bench.environment import describe
    from bench.report import write_json

    environment = describe("cpu")
    print(
        f"{environment['date']}  {environment['hardware']}  {environment['versions']}  commit {environment['commit']}"
    )
    both = options.sync == options.sampling
    figures = {"environment": environment}
    if options.sync or both:
        figures["sync"] = measure_sync(options.repeats)
    if options.sampling or both:
        figures["sampling"] = {
            size: measure_sampling(size, options.repeats) for size in options.size or ("0.3M", "20M")
        }
    if options.json:
        write_json(options.json, figures)
    return 0


def measure_sync(repeats: int) -> dict:
    """Milliseconds of a sync and of a copy of the same bytes."""
    import torch

    from fastflow.rollout import probe

    policy = make_policy("110M")
    source = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    target = torch.empty_like(source)
    started = time.perf_counter()
    sampler = make_sampler(policy)
    ready = time.perf_counter() - started
    ids = probe.probe_for(policy, PROMPT_TOKENS)
    try:
        times = interleaved(
            {
                "sync": lambda: sampler.load_weights(policy),
                "copy": lambda: target.copy_(source),
                "the trainer's probe": lambda: probe.logprobs_of(policy, ids),
            },
            repeats,
        )
    finally:
        sampler.close()
    sync, copy, probing = (1e3 * statistics.median(times[name]) for name in times)
    allowed = 1.5 * copy + 50
    print(
        f"sync: {source.nbytes / 2**20:.0f} MiB, ready in {ready:.1f} s; sync {sync:.0f} ms, copy {copy:.0f} ms, "
        f"allowed 1.5 x copy + 50 ms = {allowed:.0f} ms; the trainer's side of the probe {probing:.0f} ms"
    )
    return {
        "bytes": source.nbytes,
        "ready_s": ready,
        "sync_ms": sync,
        "copy_ms": copy,
        "probe_ms": probing,
        "allowed_ms": allowed,
    }


def measure_sampling(size: str, repeats: int) -> dict:
    """Tokens per second of both."""
    import numpy as np

    from fastflow.data.trajectory import Prompt
    from fastflow.rollout.sampler import Request, SamplingParams

    rng = np.random.default_rng(0)
    policy = make_policy(size)
    requests = [
        Request(
            Prompt(rng.integers(1, SIZES[size][2], PROMPT_TOKENS)),
            tuple(range(RESPONSES * place, RESPONSES * (place + 1))),
        )
        for place in range(PROMPTS)
    ]
    params = SamplingParams(max_response_tokens=RESPONSE_TOKENS)
    sampler = make_sampler(policy)
    bare = Bare(policy, requests)
    tokens = PROMPTS * RESPONSES * RESPONSE_TOKENS
    try:
        times = interleaved({"fastflow": lambda: sampler.sample(requests, params), "bare": bare.generate}, repeats)
    finally:
        sampler.close()
        bare.close()
    ours, theirs = (tokens / statistics.median(times[name]) for name in times)
    print(f"sampling, {size}: {ours:.0f} tokens/s under the trainer, {theirs:.0f} bare: {ours / theirs:.3f}")
    return {"tokens": tokens, "tokens_per_second": ours, "bare_tokens_per_second": theirs, "ratio": ours / theirs}


def interleaved(calls: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one untimed round before."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def make_policy(size: str):
    """A random Llama with tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fastflow.models.packed import PackedModel

    width, layers, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,  # so that every response has its full length
    )
    return PackedModel(LlamaForCausalLM(config))


def make_sampler(policy):
    from fastflow.rollout.vllm.sampler import VllmSampler

    return VllmSampler(policy, eos_ids=[], context=PROMPT_TOKENS + RESPONSE_TOKENS, max_sequences=PROMPTS * RESPONSES)


class Bare:
    """A process that calls `LLM.generate` and nothing else, each time it is told to."""

    def __init__(self, policy, requests):
        self._folder = tempfile.TemporaryDirectory()
        config = policy.causal_lm.config
        config.architectures = [type(policy.causal_lm).__name__]
        config.save_pretrained(self._folder.name)
        prompts = [request.prompt.ids.tolist() for request in requests for _ in request.seeds]
        seeds = [seed for request in requests for seed in request.seeds]
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve_bare, args=(theirs, self._folder.name, prompts, seeds), daemon=True)
        self._process.start()
        self._pipe.recv()

    def generate(self) -> None:
        self._pipe.send("generate")
        self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._folder.cleanup()


def serve_bare(pipe, model: str, prompts: list[list[int]], seeds: list[int]) -> None:
    """The same settings as fastflow.rollout.vllm.engine, from vLLM's documented entry points alone."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    import vllm._custom_ops as operations

    operations._supports_onednn = False
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model, load_format="dummy", skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        max_model_len=PROMPT_TOKENS + RESPONSE_TOKENS, max_num_seqs=PROMPTS * RESPONSES,
        logprobs_mode="processed_logprobs", disable_log_stats=True, enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
    )  # fmt: skip
    params = [
        SamplingParams(max_tokens=RESPONSE_TOKENS, seed=seed, logprobs=0, flat_logprobs=True, detokenize=False)
        for seed in seeds
    ]
    pipe.send("ready")
    try:
        while pipe.recv():
            llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
            pipe.send("done")
    except EOFError:
        return


if __name__ == "__main__":
    sys.exit(main())
