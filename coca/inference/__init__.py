"""Models in use: embeddings, captions, answers."""

from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.identity import identity
from coca.inference.load import load

__all__ = ["ContrastiveCaptioner", "identity", "load"]
