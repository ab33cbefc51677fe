"""Losses over global batches, as terms that `coca/train_step.py` weighs and sums."""
