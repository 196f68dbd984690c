"""Checkpoints: atomic, checksummed folders that any engine, ZeRO stage and number of ranks can read.

checkpoints/step-00000100/
  rank-00000.safetensors   rank 0's shards: `kind|parameter|start` (flat fp32), `memory|first stream` (L S M D)
  rank-00001.safetensors   ...
  manifest.json            state of the run, environment, file of each range, checksums, and its own checksum
checkpoints/.tmp-<owner>-*   being written or removed by that attempt; the next one deletes it
checkpoints/damaged/         checkpoints skipped as damaged; the reason is in the name
checkpoints/abandoned/       intact, but newer than the step that the run rolled back to
checkpoints/kept/            foreign files found in removed checkpoints

This module imports nothing, so that the torch-free `files` and `train_state` can be imported without torch.
"""
