"""Conversion to and from Hugging Face `transformers`: weights, configs, tokenizers, model folders."""
