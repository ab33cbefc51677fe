"""Values of the fields of records and tables, as texts."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from coca.config import Source
from coca.config.data import ORIGINS
from coca.data.records import Text

DEFAULT_IMAGE_KEY = Source().image_key
DEFAULT_TEXT_KEY = Source().text_key
LABEL = "label"  # the key of the class, where a format has one, and the origin of its name
ANSWERS = (
  "gpt",
  "assistant",
  "model",
)  # who says what is a text in a conversation, as LLaVA and chat templates have it
_MARKS = re.compile(r"<\|?__dj__\w+\|?>")  # of data-juicer: where an image stands in a text, and its end


class Key(NamedTuple):
  """One of the columns, fields or members that `Source.text_key` names."""

  name: str
  origin: str  # of its texts

  @property
  def is_class(self) -> bool:
    """True if its texts are the names of classes."""
    return LABEL in (self.name, self.origin)


def text_keys(settings: Source, usual: str, columns: Iterable[str] = ()) -> tuple[Key, ...]:
  """The keys in `Source.text_key`, in its order: one of `columns`, or several with commas between them.

  `usual` is the origin where nothing says another.
  """
  keys = []
  if settings.text_key in columns:
    return (Key(settings.text_key, settings.origin or usual),)
  for part in filter(None, map(str.strip, settings.text_key.split(","))):
    name, colon, origin = part.rpartition(":")
    if colon and origin in ORIGINS:
      keys.append(Key(name.strip(), origin))
    else:
      keys.append(Key(part, settings.origin or (LABEL if part == LABEL else usual)))
  return tuple(keys)


def label_of(texts: Iterable[Text], ids: Mapping[str, int]) -> int:
  """The class of a record by the name in its texts; -1: none, or several."""
  found = {text.text for text in texts if text.origin == LABEL}
  return ids.get(found.pop(), -1) if len(found) == 1 else -1


def as_texts(value, origin: str, answers: bool = False) -> tuple[Text, ...]:
  """A string, bytes, a number, a list of them or None, as texts without empty ones. NaN is empty, as pandas has it.

  Of a conversation, [{"from": "human", "value": ...}, {"from": "gpt", ...}] or [{"role": "user", "content": ...}, ...],
  only the answers are texts.

  Args:
    value: as JSON or Parquet have it.
    origin: of the texts.
    answers: whether these are answers to a question; true and false are then yes and no.

  Raises:
    ValueError: neither of these, or not UTF-8.
  """
  if value is None or value != value:  # NaN
    return ()
  if isinstance(value, (list, tuple)):
    try:
      return tuple(text for v in value for text in as_texts(v, origin, answers))
    except RecursionError:
      raise ValueError("its lists are nested too deeply") from None
  if isinstance(value, dict) and (speaker := value.get("from", value.get("role"))):
    return as_texts(value.get("value", value.get("content")), origin, answers) if speaker in ANSWERS else ()
  if isinstance(value, dict) and value.get("type") == "text":  # a part of what is said
    value = value.get("text")
  if isinstance(value, bool) and answers:
    value = "yes" if value else "no"
  elif isinstance(value, float) and value.is_integer():
    value = str(int(value))  # a column of integers with a gap is one of floats
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    value = str(value)
  if isinstance(value, (bytes, bytearray)):
    value = value.decode("utf-8-sig")
  if not isinstance(value, str):
    raise ValueError(f"a text is a {type(value).__name__}")
  value.encode("utf-8")  # lone surrogates: from JSON escapes, or from bytes that were not UTF-8
  value = _MARKS.sub("", value).strip() if "<" in value else value.strip()
  return (Text(value, origin),) if value else ()


def as_question(value) -> str:
  """The one question of a record, without white space at its ends.

  Raises:
    ValueError: there is none, or several; or as `as_texts`.
  """
  found = as_texts(value, "")
  if len(found) != 1:
    raise ValueError(f"{len(found)} questions: each takes a record of its own" if found else "no question")
  return found[0].text


def lookup(values: dict, key: str):
  """The value of a field, None if there is no such; a dot leads into objects and lists of them ("answers.answer")."""
  first, _, rest = key.partition(".")
  if key in values or not rest:
    return values.get(key)
  inner = values.get(first)
  if isinstance(inner, (list, tuple)):
    return [lookup(v, rest) for v in inner if isinstance(v, dict)]
  return lookup(inner, rest) if isinstance(inner, dict) else None
