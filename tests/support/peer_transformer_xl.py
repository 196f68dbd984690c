"""Export weights, log-probabilities and losses of the Transformer-XL of transformers 4.x, which must be installed.

Usage: python peer_transformer_xl.py FOLDER '{"vocab_size": ..}'. Shares no code with this project.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

NUM_ROWS, NUM_SEGMENTS, SEQ_LEN = 3, 10, 7


def main() -> None:
    """Write the model, and its results for ten consecutive segments with memory."""
    out, keys = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.manual_seed(0)
    model = TransfoXLLMHeadModel(TransfoXLConfig(**keys)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.tie_weights()
    model.crit.keep_order = True
    tokens = torch.randint(keys["vocab_size"], (NUM_SEGMENTS, NUM_ROWS, SEQ_LEN))
    mems, log_probs, losses = None, [], []
    with torch.no_grad():
        for segment in tokens:
            losses.append(model(segment, mems=mems, labels=segment).losses)
            answer = model(segment, mems=mems)
            mems = answer.mems
            log_probs.append(answer.prediction_scores)
    torch.save({"tokens": tokens, "log_probs": torch.stack(log_probs), "losses": torch.stack(losses)}, out / "peer.pt")
    model.save_pretrained(out / "theirs", safe_serialization=keys["untie_r"])


if __name__ == "__main__":
    main()
