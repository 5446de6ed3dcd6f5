"""Robust accuracy as the field measures it: AutoAttack, on a classifier ``x -> logits`` alone."""
