"""The papers' recipes, from which the files in configs/ are made."""
