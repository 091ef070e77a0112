"""Going on with a run: from which save, and whether its prompts and its base are still the same."""

from __future__ import annotations

import dataclasses
import logging
import platform

from fastflow.config.reader import read_config
from fastflow.config.resume import Resume, check_settings
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.models.ranks import Ranks
from fastflow.run import directory as run_directory
from fastflow.run.checkpoints import Checkpoints
from fastflow.train.saves.restore import Saved, read
from fastflow.train.state import Identity

logger = logging.getLogger(__name__)


def find(checkpoints: Checkpoints, resume: Resume) -> Saved | None:
    """The newest whole save to go on from; None where there is none and the run starts from its beginning.

    Raises FastflowError where a run was to be resumed that has no save, or only damaged ones.
    """
    if resume == "no":
        return None
    save = checkpoints.newest_whole()
    if save is not None:
        return read(save.path)
    policy = checkpoints.run / "policy"
    if policy.exists():
        raise FastflowError(
            f"{checkpoints.run} holds a policy and no save to go on from (an earlier fastflow wrote none, or they were "
            f"removed); train on from it with --model.path {policy} and another --run.output"
        )
    if resume == "yes":
        raise FastflowError(
            f"{checkpoints.run} has no save to go on from: the run ended before its first; start it again with "
            "--run.overwrite true, and set run.save_every"
        )
    return None


def find_or_begin(checkpoints: Checkpoints, config: Config, resume: Resume) -> Saved | None:
    """The save that a run of these settings goes on from; None where it starts from its beginning.

    Raises FastflowError where the settings do not go on with that save, and where a start would overwrite something.
    """
    saved = find(checkpoints, resume)
    if saved is None:
        run_directory.check_output(checkpoints.run, overwrite=config.run.overwrite or resume == "auto")
    else:
        total_updates = saved.state["identity"]["total_updates"]
        check_settings(config, settings_of(saved), step=saved.state["step"], total_updates=total_updates)
    return saved


def settings_of(saved: Saved) -> Config:
    """Those that a save was made with."""
    return read_config(["--config", str(saved.directory / "trainer" / "config.yaml")])[0]


def check_identity(identity: Identity, saved: Saved, config: Config) -> None:
    """Raise FastflowError where prompts, base or objective are not those of the save; name versions that changed."""
    known = {entry.name for entry in dataclasses.fields(Identity)}  # a later fastflow may add more
    before = Identity(**{name: value for name, value in saved.state["identity"].items() if name in known})
    if before.prompts != identity.prompts:
        raise FastflowError(
            f"data.path = {config.data.path} does not give the prompts that the run was started with (the digest of "
            "their token ids differs); bring the old file or tokenizer back, or start a new run"
        )
    if before.base != identity.base:
        name, path = ("model.base", config.model.base) if config.model.base else ("model.path", config.model.path)
        raise FastflowError(
            f"{name} = {path} does not hold the base's weights that the run was started with (their digest differs); "
            "bring the old ones back, or start a new run"
        )
    if before.tokenizer not in ("", identity.tokenizer):
        raise FastflowError(
            f"the tokenizer of model.path = {config.model.path} is not that which the run was started with (the texts "
            "of its tokens or its end tokens differ); bring the old one back, or start a new run"
        )
    if before.objective not in ("", identity.objective):
        raise FastflowError(
            f"the run was started with the objective {before.objective}, and this would go on with "
            f"{identity.objective}, another loss; go on with the program that started it, which hands its own "
            "objective to fastflow.train.command.train with resume, or start a new run"
        )
    changed = [
        f"{name} {version} (was {before.versions.get(name)})"
        for name, version in identity.versions.items()
        if before.versions.get(name) != version
    ]
    if changed:
        logger.warning("versions that changed: %s; results may differ in their last bits", ", ".join(changed))


def check_ranks(saved: Saved, ranks: Ranks) -> None:
    """Say what another number of ranks changes."""
    if saved.state["ranks"] != ranks.count:
        logger.warning(
            "the save is of %s and the run goes on with %d: sums have another order, so that it is no longer "
            "the uninterrupted one to the bit", counted(saved.state["ranks"], "rank"), ranks.count,
        )  # fmt: skip


def prompts_after(taken: int, count: int, saved: Saved) -> dict[str, int]:
    """The state of a stream over `count` prompts after so many were taken. Raises FastflowError where a save has
    another one.
    """
    epoch, position = divmod(taken, count)
    state = {"epoch": epoch, "position": position}
    if saved.state["prompts"] != state:
        raise FastflowError(
            f"the save in {saved.directory} stands at {saved.state['prompts']} of the prompts, and after "
            f"{counted(saved.state['step'], 'step')} it should be {state}; it is not of this run"
        )
    return state


def versions() -> dict[str, str]:
    """Of what the bits of a run depend on."""
    import numpy
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }
