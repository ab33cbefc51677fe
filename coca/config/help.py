"""All settings as text and as a page, made of their comments: `python -m coca.config.help > docs/settings.md`."""

import ast
import dataclasses
import difflib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from coca.config.settings import Config

INTRODUCTION = """# Settings

All settings of a training run, as `coca/config/help.py` makes them of the comments in `coca/config/`. A file in
`configs/` says what differs from these defaults, which are the papers' unless it is said otherwise, and the command
line what differs from the file: `--config.model.image.width=512`. NAME stands for a name of your own. A duration is a
text: `"10000"` or `"10000 steps"`, `"1e6 examples"`, `"2%"` of the run.

The same as text, of one setting or of all whose names begin so:

```bash
python -m coca.train --help_settings model.text optim.lr
```
"""


class Setting(NamedTuple):
  """A setting, as it is documented."""

  name: str  # 'model.image.width'
  takes: str  # its type, or the values that it may have
  default: str
  text: str  # its comment


class Group(NamedTuple):
  """A dataclass of settings."""

  name: str  # 'model.image'; empty for the run itself
  kind: type
  settings: list[Setting]


def groups(kind: type = Config, name: str = "") -> Iterator[Group]:
  """The settings of a dataclass, then those of the dataclasses in it, in their order."""
  written, hints, own, inner = _written(kind), typing.get_type_hints(kind), [], []
  for field in dataclasses.fields(kind):
    path, hint = f"{name}.{field.name}".lstrip("."), hints[field.name]
    *_, value = typing.get_args(hint) or [hint]  # of a dict, the type of what it holds
    if dataclasses.is_dataclass(value):
      inner.append((value, path if hint is value else f"{path}.NAME"))
      continue
    type_, text = written[field.name]
    takes = ", ".join(map(repr, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else type_
    default = field.default_factory() if callable(field.default_factory) else field.default
    own.append(Setting(path, takes, repr(default), text))
  yield Group(name, kind, own)
  for value, path in inner:
    yield from groups(value, path)


def page() -> str:
  """docs/settings.md: a table for each dataclass, once."""
  parts, named = [INTRODUCTION], {}
  for name, kind, settings in groups():
    where = named.setdefault(kind, name)
    text = inspect.cleandoc(kind.__doc__ or "") if where == name else f"As `{where}`."
    parts.append(f"## {f'`{name}`' if name else 'The run'}\n\n{text}\n")
    if where == name and settings:
      rows = [f"| `{s.name.removeprefix(f'{name}.')}` | {s.takes} | `{s.default}` | {s.text} |" for s in settings]
      parts.append("\n".join(["| Setting | Takes | Default | |", "|---|---|---|---|", *rows]) + "\n")
  return "\n".join(parts)


def described(names: Sequence[str]) -> str:
  """The settings with these names, or below them, as text; without a name all.

  Raises:
    ValueError: there is none of a name.
  """
  settings = [setting for group in groups() for setting in group.settings]
  found = []
  for name in names or [""]:
    path = name.removeprefix("--").removeprefix("config.")
    below = [s for s in settings if _lies_below(s.name, path)]
    if not below:
      close = difflib.get_close_matches(path, [s.name for s in settings], 3)
      raise ValueError(
        f"no such setting: {name}; "
        + (f"did you mean {', '.join(close)}?" if close else "--help_settings without a name prints all")
      )
    found += below
  return "\n".join(
    f"{s.name}: {s.takes}; default {s.default}\n" + textwrap.indent(textwrap.fill(s.text, 100), "  ") for s in found
  )


def _lies_below(name: str, path: str) -> bool:
  own, asked = name.split("."), path.split(".") if path else []
  return len(asked) <= len(own) and all(a in (b, "NAME") for a, b in zip(own, asked, strict=False))


def _written(kind: type) -> dict[str, tuple[str, str]]:
  """The type of each field, as it is written, and the comment above it in one line; empty without one."""
  lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
  found = {}
  for node in ast.iter_child_nodes(ast.parse("\n".join(lines)).body[0]):
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      first = node.lineno - 1
      while lines[first - 1].lstrip().startswith("#"):
        first -= 1
      comment = " ".join(line.strip(" #") for line in lines[first : node.lineno - 1])
      found[node.target.id] = ast.unparse(node.annotation), comment
  return found


if __name__ == "__main__":
  print(page(), end="")
