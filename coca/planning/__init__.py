"""The costs of a config on devices that are not here."""
