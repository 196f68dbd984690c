"""To and from Hugging Face `transformers`: names of weights, configs, tokenizers, whole folders."""
