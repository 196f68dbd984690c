"""Separate environments for peers that cannot be installed in this one, each created once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRANSFORMERS_4 = "4.35.2"


def transformers_4() -> Path:
    """Python interpreter with the last transformers 4.x that has a working Transformer-XL."""
    return _environment(
        "transformers4", f"transformers=={TRANSFORMERS_4}", "huggingface_hub==0.17.3", "tokenizers>=0.14,<0.19", "regex"
    )


def trainer() -> Path:
    """Python interpreter with the additional packages for the Trainer of transformers."""
    return _environment("trainer", "accelerate>=1.1")


def _environment(name: str, *wanted: str) -> Path:
    """Create an environment; packages not listed, such as torch, come from this environment."""
    folder = Path(__file__).resolve().parent / "results" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        import torch

        here = Path(torch.__file__).parents[1]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        place = subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
        )
        Path(place.stdout.strip(), "torch_of_ours.pth").write_text(str(here))
        ready.touch()
    return python
