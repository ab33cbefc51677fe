"""Models in use: embeddings, captions, answers."""

from coca.inference.captioner import ContrastiveCaptioner, load
from coca.inference.identity import identity

__all__ = ["ContrastiveCaptioner", "identity", "load"]
