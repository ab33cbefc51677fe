"""For files in configs/: `arguments` reads what stands behind `config.py:`."""

from coca.config.command_line import arguments

__all__ = ["arguments"]
