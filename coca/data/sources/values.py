"""Values of the fields of records and tables, as texts."""

from coca.config import Source
from coca.data.records import Text

DEFAULT_IMAGE_KEY = Source().image_key
DEFAULT_TEXT_KEY = Source().text_key


def as_texts(value, origin: str, answers: bool = False) -> tuple[Text, ...]:
  """A string, bytes, a number, a list of them or None, as texts without empty ones. NaN is empty, as pandas has it.

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
  value = value.strip()
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
