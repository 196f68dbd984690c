"""The tasks that a pretrained model is fine-tuned for, one module each; `base` is their interface."""
