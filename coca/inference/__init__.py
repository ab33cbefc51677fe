"""Models in use: embeddings, captions, answers."""

from coca.inference.captioner import ContrastiveCaptioner, identity, load

__all__ = ["ContrastiveCaptioner", "identity", "load"]
