"""Settings of what the method's released code does in another way than its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastflow.config.setting import Section, setting


@dataclass(frozen=True)
class ReleasedConfig(Section):
    """Switches of PowerFlow's released code, where it differs from the paper, or decides what that leaves open. The
    preset powerflow-released sets all of them.
    """

    token_mask: bool = setting(
        False,
        "powerflow: leave a token out of its response where pi / pi_old of that token is beyond importance.clip_*; "
        "length, means and importance weight are those of the tokens that stay",
    )
    log_z_offset: float | None = setting(
        None,
        "powerflow: the learned log_z starts at minus this much x (alpha - 1), 0.36 in the released code; null starts "
        "it at the first batch's mean",
    )
    log_z_prompt: Literal["whole", "without_last"] = setting(
        "whole", "The learned log_z reads the mean over the whole prompt, or over all but its last token (released)"
    )
    log_z_dropout: float = setting(
        0.0,
        "Dropout after each layer of the learned log_z, 0.1 in the released code; its masks follow from the responses' "
        "seeds alone",
        at_least=0, below=1,
    )  # fmt: skip
    log_z_rate: Literal["own", "policy"] = setting(
        "own",
        "Learning rate and gradient bound of the learned log_z: its own (optim.log_z_lr), or the policy's, with one "
        "norm over both (released)",
    )
