"""Package metadata: ranges here, the exact versions that are tested in requirements.lock."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "adv_ssl" / "__init__.py").read_text())[1]

setup(
    name="adv_ssl",
    version=VERSION,
    description="Adversarially self-supervised pre-training of Vision Transformers, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["adv_ssl", "adv_ssl.*"]), "configs"],
    package_data={"adv_ssl": ["py.typed", "*.css", "labels/*", "paper/data/*.csv"]},
    install_requires=[
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "ml-collections>=1.1,<2",
        "absl-py>=2",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8.6",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6",  # which tensorflow-datasets needs to prepare a set
        "numpy>=2",
        "ml_dtypes>=0.5",
        "scipy>=1.15",
        "pillow>=12",
        "opencv-python-headless>=5",  # 4 interpolates otherwise: snow is other pixels
        "dm-pix>=0.4.5",
        "scikit-learn>=1.7",
        "matplotlib>=3.10",
        "tensorboardX>=2.6.4",
        "safetensors>=0.6",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],  # NVIDIA drivers of 580 or newer
        "cuda12": ["jax[cuda12]>=0.10.2,<0.11"],  # older ones
        "estimate": ["libtpu>=0.0.42,<0.0.43"],  # compiles for TPUs without one
        "test": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "chex>=0.1.92",
            "hypothesis>=6.140",
            "pyyaml>=6",
            "import-linter>=2.5",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "setuptools>=65",  # builds what the tests install; newer Pythons come without
        ],
        "bench": ["torch>=2.13", "timm>=1.0.20", "torchattacks>=3.5"],  # held against
        "reference": [
            "torch>=2.13",
            "timm>=1.0.20",
            "scikit-image>=0.26",
        ],  # re-derives the golden files of tests/golden
    },
)
