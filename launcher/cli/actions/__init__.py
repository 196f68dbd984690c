"""Bodies of the commands, imported when a command first uses them.

`--help` and usage errors need none of these modules, and so do not import torch, which takes seconds. The mechanism is
a module-level `__getattr__` (PEP 562); the modules themselves import what they need at the top. Torch-free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.cli.actions import configs as configs
    from launcher.cli.actions import datasets as datasets
    from launcher.cli.actions import doctor as doctor
    from launcher.cli.actions import evaluate as evaluate
    from launcher.cli.actions import finetune as finetune
    from launcher.cli.actions import models as models
    from launcher.cli.actions import monitor as monitor
    from launcher.cli.actions import plan as plan
    from launcher.cli.actions import score as score
    from launcher.cli.actions import training as training
else:
    from importlib import import_module

    def __getattr__(name):
        """Import a module of this room at its first use."""
        if name.startswith("__"):
            raise AttributeError(name)
        return import_module(f"{__name__}.{name}")
