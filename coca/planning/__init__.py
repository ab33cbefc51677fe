"""What a config costs on devices that are not here."""
