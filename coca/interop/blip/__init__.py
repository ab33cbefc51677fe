"""BLIP's weights and settings."""
