"""Tokenizers, one module a kind; `coca.data.tokenizers.load` tells which a file is."""
