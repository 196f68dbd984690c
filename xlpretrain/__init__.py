"""xlpretrain: distributed pretraining for Transformer-XL, XLNet, ALBERT and BERT."""
