"""Losses over global batches, as terms that `coca/training/gradients.py` weighs and sums."""
