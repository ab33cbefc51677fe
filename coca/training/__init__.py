"""A training run: its loop, its step, and what it says of itself."""
