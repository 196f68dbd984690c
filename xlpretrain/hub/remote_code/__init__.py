"""Code that goes with exported models, and requires only transformers and torch."""
