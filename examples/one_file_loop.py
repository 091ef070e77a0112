"""PowerFlow in one file, on transformers and fastflow_kernels alone: sample, score with the base, take one step.

    python examples/one_file_loop.py                                              a tiny random model on the CPU, 20 s
    python examples/one_file_loop.py --model DIRECTORY --prompts FILE --lr 1e-6   a real one; a prompt a line

The policy learns to sample from the alpha-power of its own base. `slope` says how far it is: that of mean log pi on
mean log p_base among the responses to one prompt, 1 at the start and alpha at the end.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fastflow_kernels import flow_loss, linear_logprob

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.25}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=0, pad_token_id=0))


def sample(model, prompts: torch.Tensor, mask: torch.Tensor, responses: int, longest: int):
    """Left-padded prompts (P, L) with `responses` to each: ids, attention mask, columns of the response."""
    ids, mask = prompts.repeat_interleave(responses, 0), mask.repeat_interleave(responses, 0)
    end = model.generation_config.eos_token_id
    with torch.no_grad():
        ids = model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=longest, top_k=0, pad_token_id=0)
    response = ids[:, mask.shape[1] :]
    ended = torch.isin(response, torch.tensor(end, device=ids.device)).cumsum(1)
    kept = (ended == 0) | ((ended == 1) & ended.diff(dim=1, prepend=torch.zeros_like(ended[:, :1])).bool())
    return ids, torch.cat([mask, kept.long()], 1), kept


def rows_of(model, ids: torch.Tensor, mask: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Hidden states (N, D) of the places that predict the kept response tokens, sequence by sequence."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    body = model.get_decoder()(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return body.last_hidden_state[:, -kept.shape[1] - 1 : -1][kept]


def update(policy, base, optimizer, batch, alpha: float, responses: int) -> dict[str, float]:
    ids, _, kept = batch
    targets, length = ids[:, -kept.shape[1] :][kept], kept.sum(1)
    sequence = torch.arange(len(ids), device=ids.device).repeat_interleave(length)

    def per_sequence(model) -> torch.Tensor:
        with torch.no_grad():
            token = linear_logprob(rows_of(model, *batch), model.lm_head.weight, targets)
        return token.new_zeros(len(ids), dtype=torch.float64).index_add_(0, sequence, token.double())

    base_logprob, behaviour = per_sequence(base), per_sequence(policy)
    scale = 1 / length.double()
    log_target = alpha * scale * base_logprob
    group = (log_target - scale * behaviour).view(-1, responses)  # log_z: what makes its mean residual zero
    result = flow_loss(
        rows_of(policy, *batch),
        policy.lm_head.weight,
        targets,
        torch.nn.functional.pad(length.cumsum(0), (1, 0)).int().cpu(),
        log_z=group.mean(1, keepdim=True).expand_as(group).flatten().float(),
        log_target=log_target,
        length_scale=scale,
        behaviour_logprob=behaviour,
        clip_low=0.2,
        clip_high=0.28,
        normaliser=len(ids),
    )
    result.loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    x, y = ((scale * value).view(-1, responses) for value in (base_logprob, behaviour))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    slope = (x * y).sum() / (x * x).sum()
    return {"loss": result.loss.item(), "slope": slope.item(), "length": length.double().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub id (default: a tiny random model)")
    parser.add_argument("--prompts", type=Path, help="text file, a prompt a line")
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--responses", type=int, default=16, help="to each prompt")
    parser.add_argument("--longest", type=int, default=12, help="tokens of a response")
    options = parser.parse_args()
    if options.model:
        policy, base = (AutoModelForCausalLM.from_pretrained(options.model).to(DEVICE) for _ in range(2))
        tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        encoded = tokenizer(options.prompts.read_text().splitlines(), return_tensors="pt", padding=True).to(DEVICE)
        prompts, mask = encoded["input_ids"], encoded["attention_mask"]
    else:
        torch.set_num_threads(1)  # of matrices this small, more only wait for each other
        policy, base = tiny_model().to(DEVICE), tiny_model().to(DEVICE)
        prompts = torch.arange(1, 9, device=DEVICE).view(8, 1)
        mask = torch.ones_like(prompts)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=options.lr, weight_decay=0.0)
    for step in range(1, options.steps + 1):
        batch = sample(policy, prompts, mask, options.responses, options.longest)
        found = update(policy, base, optimizer, batch, options.alpha, options.responses)
        if step % 10 == 0 or step == 1:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
