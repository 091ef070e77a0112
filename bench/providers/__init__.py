"""All providers, in the order in which they first run: ours and torch's before those that may break the device."""

from bench.providers import cce, eager, fastflow, gemms, liger, quack, torch_fused, verl
from bench.providers.provider import Provider

ALL: tuple[Provider, ...] = (
    *fastflow.PROVIDERS,
    *gemms.PROVIDERS,
    *eager.PROVIDERS,
    *torch_fused.PROVIDERS,
    *cce.PROVIDERS,
    *verl.PROVIDERS,
    *liger.PROVIDERS,
    *quack.PROVIDERS,
)


def select(names: list[str] | None, *, quick: bool) -> list[Provider]:
    """The named providers; without names, all, or those that are fast to load.

    >>> [provider.name for provider in select(["eager", "fastflow"], quick=False)]
    ['fastflow', 'eager']
    """
    if names is None:
        return [provider for provider in ALL if provider.in_quick or not quick]
    unknown = set(names) - {provider.name for provider in ALL}
    if unknown:
        known = ", ".join(provider.name for provider in ALL)
        raise ValueError(f"no provider {', '.join(sorted(unknown))}; there are {known}")
    return [provider for provider in ALL if provider.name in names]
