"""Tokenizers, one module a kind (`coca.config.special.Tokenizer`); `load` tells which a file is."""
