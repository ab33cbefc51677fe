"""Nested dicts, as ml_collections and JSON have them: read with their types checked, and from and to dataclasses."""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict


def read_object(data: bytes | str) -> dict:
  """A JSON object from a file's contents. Raises ValueError, without the file's name: damaged, or no object.

  NaN and Infinity, which Python writes and JSON has not, are damage too, and numbers that become infinite.
  """

  def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
      raise ValueError(f"{text[:80]} is no number that a setting can be")
    return value

  try:
    values = json.loads(data, parse_constant=number, parse_float=number)
  except RecursionError:
    raise ValueError("its brackets are nested too deeply") from None
  if not isinstance(values, dict):
    raise ValueError(f"it holds a {type(values).__name__} and no object ({{...}})")
  return values


def entry(values: dict, name: str, default, least: float = 0, most: float = 1 << 20) -> Any:
  """An entry of a JSON object that somebody else has written, of the type that is expected.

  Args:
    values: the object.
    name: the entry's, after what tells where it is, for the error: 'vision_cfg.width', 'FILE: size'.
    default: where there is none, or null; or a type: then it has to be there. A tuple stands for as many numbers.
    least: of numbers.
    most: of numbers; beyond the default, sizes only overflow.

  Raises:
    ValueError: another type or number.
  """
  if not isinstance(values, dict):
    raise ValueError(f"{name}: {values!r:.80} stands where an object ({{...}}) has to be")
  value = values.get(re.split(r"[. ]", name)[-1])
  kind = default if isinstance(default, type) else type(default)
  if value is None and kind is not default:
    return default

  def fits(x, kind):
    if kind in (int, float):
      return type(x) in {int, kind} and least <= x <= most  # NaN is neither
    return type(x) is kind

  numbers = default if isinstance(default, tuple) else ()
  if numbers and isinstance(value, list) and len(value) == len(numbers) and all(fits(x, float) for x in value):
    return tuple(float(x) for x in value)
  if numbers or not fits(value, kind):
    what = {
      int: "a whole number",
      float: "a number",
      bool: "true or false",
      str: "a text",
      list: "a list",
      dict: "an object ({...})",
    }.get(kind) or f"{len(numbers)} numbers"
    between = f" from {least:,} to {most:,}" if kind in (int, float, tuple) else ""
    raise ValueError(f"{name} is {'missing' if value is None else f'{value!r:.80}'}; it takes {what}{between}")
  return kind(value)


def to_plain(value):
  """Dataclasses in any depth of dicts as dicts."""
  if dataclasses.is_dataclass(value):
    return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, dict):
    return {k: to_plain(v) for k, v in value.items()}
  return value


def from_plain(kind, values, where: str):
  """A dataclass `kind` from a dict; raises ValueError naming the setting below `where` and what it may be."""
  fields = {f.name for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  for name in values:
    if name not in fields:
      close = difflib.get_close_matches(name, fields, 1)
      hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(fields))}"
      raise ValueError(f"{where}.{name}: no such setting; {hint}")
  return kind(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _convert(kind, value, where: str):
  if dataclasses.is_dataclass(kind):
    _check_names(value, where, ": " + ", ".join(f.name for f in dataclasses.fields(kind)))
    return from_plain(kind, dict(value), where)
  if isinstance(kind, types.GenericAlias):
    inner = typing.get_args(kind)
    if kind.__origin__ is dict:
      _check_names(value, where)
      return {k: _convert(inner[1], v, f"{where}.{k}") for k, v in dict(value).items()}
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
      raise ValueError(f"{where} is {value!r}; it takes a tuple")
    if inner[-1] is not Ellipsis and len(value) != len(inner):
      raise ValueError(f"{where} is {value!r}; it takes {len(inner)} values")
    return tuple(_convert(inner[0], v, where) for v in value)
  if typing.get_origin(kind) is typing.Literal:
    check_choice(kind, value, where)
    return value
  if type(value) is not kind and not (kind is float and type(value) is int):
    raise ValueError(f"{where} is {value!r}; it takes a value of type {kind.__name__}")
  if kind in (int, float):
    if not -(2**53) <= value <= 2**53:  # NaN is not, either
      raise ValueError(f"{where} is {value!r:.80}; it takes a number up to 2^53")
    return kind(value)
  return value


def check_choice(kind, value, where: str) -> None:
  """Raises ValueError, which names the setting `where`, unless `value` is one of those of `kind`, a `Literal`."""
  choices = typing.get_args(kind)
  if not any(type(value) is type(choice) and value == choice for choice in choices):
    raise ValueError(f"{where} is {value!r}; it may be {', '.join(map(repr, choices))}")


def _check_names(value, where: str, names: str = "") -> None:
  if not isinstance(value, (dict, ConfigDict)):
    raise ValueError(f"{where} is {value!r}; it takes settings by name{names}")


def lookup(value, path: list[str], where: str) -> Iterator[tuple[str, Any]]:
  """Yields (name, value) of what lies at `path`, in which '*' is every name of a dict."""
  if not path:
    yield where, value
  elif path[0] == "*":
    for name, v in value.items():
      yield from lookup(v, path[1:], f"{where}.{name}")
  else:
    yield from lookup(getattr(value, path[0]), path[1:], f"{where}.{path[0]}")
