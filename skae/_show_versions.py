"""Versions and devices, for reports of faults."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from threadpoolctl import threadpool_info

from skae._version import __version__

# Packages that are used if they are installed.
OPTIONAL = (
    "pandas",
    "polars",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "skl2onnx",
    "dask",
    "distributed",
    "accelerate",
)
REQUIRED = (
    "numpy",
    "scipy",
    "scikit-learn",
    "joblib",
    "torch",
    "skorch",
    "safetensors",
    "threadpoolctl",
    "tqdm",
)


def show_versions() -> None:
    """Print the versions of skae and of its dependencies, devices and threads.

    Paste the output into a report of a fault.

    Examples
    --------
    >>> import skae
    >>> skae.show_versions()
    System
      python: 3...
    """
    sections = {
        "System": _system(),
        "Packages": {"skae": __version__} | _versions(REQUIRED),
        "Optional packages": _versions(OPTIONAL),
        "PyTorch": _torch(),
        "Threads": _thread_pools(),
    }
    lines = []
    for title, values in sections.items():
        lines += [title, *(f"  {name}: {value}" for name, value in values.items()), ""]
    print("\n".join(lines[:-1]))


def _system() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": platform.platform(),
        "processors": str(os.cpu_count()),
    }


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _torch() -> dict[str, str]:
    has_mps = torch.backends.mps.is_available()
    devices = ["cpu"] + ["mps"] * has_mps
    devices += [
        f"cuda:{number} ({torch.cuda.get_device_name(number)})"
        for number in range(torch.cuda.device_count())
    ]
    return {
        "built with CUDA": torch.version.cuda or "no",
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
    }


def _thread_pools() -> dict[str, str]:
    return {
        f"{pool['internal_api']} {pool['version'] or ''}".strip(): (
            f"{pool['num_threads']} threads"
        )
        for pool in threadpool_info()
    }
