"""open_clip's weights and settings."""
