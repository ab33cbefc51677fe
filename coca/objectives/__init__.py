"""Losses over global batches, as terms that `coca/training/step.py` weighs and sums."""
