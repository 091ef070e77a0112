"""All providers, in the order in which they first run: ours and torch's before those that may break the device."""

from bench.providers import cce, eager, fastflow, gemms, liger, quack, torch_fused, trl, verl
from bench.providers.provider import Provider

ALL: tuple[Provider, ...] = (
    *fastflow.PROVIDERS,
    *gemms.PROVIDERS,
    *eager.PROVIDERS,
    *torch_fused.PROVIDERS,
    *trl.PROVIDERS,
    *cce.PROVIDERS,
    *verl.PROVIDERS,
    *liger.PROVIDERS,
    *quack.PROVIDERS,
)


def select(names: list[str] | None, *, quick: bool) -> list[Provider]:
    """The named providers; without names, all, or those that are fast to load. Raises ValueError for unknown names.

    >>> [provider.name for provider in select(["eager", "fastflow@2048", "fastflow"], quick=False)]
    ['fastflow', 'fastflow@2048', 'eager']
    """
    if names is None:
        return [provider for provider in ALL if provider.in_quick or not quick]
    listed = {provider.name for provider in ALL}
    sized = {name: fastflow.at_size(name) for name in names if name not in listed and "@" in name}
    unknown = {name for name in names if name not in listed and sized.get(name) is None}
    if unknown:
        raise ValueError(
            f"no provider {', '.join(sorted(unknown))}; there are {', '.join(provider.name for provider in ALL)}, and "
            "ours at a size of their blocks, such as fastflow@2048"
        )
    chosen = [provider for provider in ALL if provider.name in names]
    ours = [provider for provider in chosen if provider.is_ours]
    return [*ours, *filter(None, sized.values()), *(provider for provider in chosen if not provider.is_ours)]
