"""Checks of a run's config: its data, tokenizer and trackers."""
