"""What a compiled kernel must not do, as rules over the compiler's report."""

from bench.compile_report import Resources

TENSOR_MEMORY_COLUMNS = 512
MEANING = {
    "HMMA": "tensor cores",
    "HGMMA": "tensor cores",
    "UTC*MMA": "tensor cores",
    "*MMA": "tensor cores",
    "UTMALDG": "TMA loads",
    "UTMASTG": "TMA stores",
    "LDGSTS": "asynchronous copies",
}


def breaches(
    resources: Resources,
    shared_limit: int,
    *,
    needs: tuple[str, ...] = (),
    forbids: tuple[str, ...] = (),
    most_epilogue: int | None = None,
) -> list[str]:
    """What is wrong with a kernel, in words; empty where nothing is.

    shared_limit: bytes that a program may have. needs, forbids: instructions, as patterns among MEANING.
    most_epilogue: instructions that may follow the last product.
    """
    spills, restores = resources.count("STL"), resources.count("LDL")
    rules = [
        (resources.stack_bytes > 0, f"a stack of {resources.stack_bytes} bytes"),
        (resources.local_bytes > 0, f"{resources.local_bytes} bytes of local memory"),
        (spills + restores > 0, f"registers spill: {spills} STL, {restores} LDL"),
        (
            resources.shared_bytes > shared_limit,
            f"{resources.shared_bytes} bytes of shared memory, of which there are {shared_limit}",
        ),
        (
            resources.tensor_memory_columns > TENSOR_MEMORY_COLUMNS,
            f"{resources.tensor_memory_columns} columns of tensor memory, of which there are {TENSOR_MEMORY_COLUMNS}",
        ),
    ]
    rules += [(True, f"the assembler warns, {warning}") for warning in resources.warnings]
    if most_epilogue is not None:
        words = f"{resources.epilogue} instructions follow the last product, of which {most_epilogue} are allowed"
        rules.append((resources.epilogue > most_epilogue, words))
    rules += [(not resources.count(name), f"no {MEANING[name]} ({name})") for name in needs]
    rules += [(resources.count(name) > 0, f"{MEANING[name]} ({name}), which round float32") for name in forbids]
    return [words for is_breach, words in rules if is_breach]
