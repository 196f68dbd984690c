"""Checkpoints: atomic, checksummed folders that any engine, ZeRO stage and number of ranks can read.

checkpoints/step-00000100/
  rank-00000.safetensors   what rank 0 owned: `kind|parameter|start` (flat fp32), `memory|first stream` (L S M D)
  rank-00001.safetensors   ...
  manifest.json            state of the run, layout, which range lies in which file, checksums; one over itself
checkpoints/.tmp-<owner>-*   being written or removed by that start of the run; removed by the next
checkpoints/damaged/         what a start had to pass over, with the reason in the name
checkpoints/abandoned/       whole, but newer than the step that the run went back to
checkpoints/kept/            what lay in a checkpoint that was removed, and no save had written

What is named here is imported when it is used: `folders` and `format` need no torch, and neither do their users.
"""
