"""What every source of image-text pairs hands over."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
  """One text of a picture and where it comes from."""

  text: str
  origin: str = "web"  # 'web', 'synthetic', 'human', 'label'


@dataclass(frozen=True, slots=True)
class Record:
  """One picture with its texts, not decoded yet."""

  key: str  # unique in its source
  image: bytes  # encoded: JPEG, PNG, WebP, ...
  texts: tuple[Text, ...]
  label: int = -1  # index into the source's label_names; -1: no label


class BadRecord(Exception):
  """A record that cannot be read; the message is the reason, with the file's name or the record's key."""
