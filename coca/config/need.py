"""A check of a setting."""


def need(ok, message: str) -> None:
  """Raises ValueError with the message unless `ok`."""
  if not ok:
    raise ValueError(message)
