"""The change from one stage of a run to the next, and the moves of streams between ranks."""
