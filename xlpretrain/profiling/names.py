"""Names of the ranges of a training step in a trace. Torch-free."""

from __future__ import annotations

DATA, FORWARD, BACKWARD, UPDATE = "step: data", "step: forward", "step: backward", "step: update"
"""Waiting for the loader; a micro-batch forward and backward; clipping and the optimizer."""
COMMUNICATION = "step: communication"
"""A collective in which the host waits for other ranks."""
ATTENTION, PROJECTION, LOSS = "model: attention", "model: projection", "model: loss"
"""Attention; a product in it that maps between its width and the layer's; the head, from hidden states to the loss."""
PAUSE = "step: pause"
"""A save before a step."""
