"""Switches a model's own dropout off.

With it, the log-probs of training would be those of another random model at each pass, and not those of the one that
sampled. Nobody asks for it by a setting: some checkpoints have it in their config.json. The dropout of adapters is a
setting, lora.dropout, and stays.
"""

from __future__ import annotations

from torch import nn


def switch_off_dropout(model: nn.Module) -> dict[str, float]:
    """Switch off the dropout of each module, in place; config.json's entries stay. Returns the rates by their names."""
    found: dict[str, float] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            found[path.rpartition(".")[2]], module.p = module.p, 0.0
        for name, value in list(vars(module).items()):  # attention takes its rate from an attribute
            if name.endswith("dropout") and isinstance(value, float) and value:
                found[name] = value
                setattr(module, name, 0.0)
    return found
