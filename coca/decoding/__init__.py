"""Texts from images: greedy, sampling and beam search, written once over a small protocol, `text_model.TextModel`."""
