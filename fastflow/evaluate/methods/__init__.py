"""How an answer is drawn in an evaluation: plain sampling, and the inference-time methods it is compared with."""
