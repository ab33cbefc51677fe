"""Parts of the command lines that take a config file."""

import contextlib
import difflib
import os
import re
import signal
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LATE = "Configuration is not available because of an earlier failure to load: "


def arguments(arg: str | None, **defaults) -> ConfigDict:
  """Parses the text behind `config.py:`, e.g. `res=128,runlocal`; a bare name means True.

  Args:
    arg: the text, or None.
    **defaults: the arguments that this config knows. Values take the type of the default.

  Raises:
    ValueError: an unknown argument (the known ones are listed) or a value of the wrong type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    name, has_value, text = item.partition("=")
    if name not in defaults:
      known = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise ValueError(f"config argument '{name}' is unknown; this config takes: {known}")
    kind = type(defaults[name])
    if kind is bool:
      if has_value and text.lower() not in ("1", "0", "true", "false"):
        raise ValueError(f"config argument '{item}': '{name}' takes true or false")
      values[name] = text.lower() in ("1", "true") if has_value else True
    elif not has_value:
      raise ValueError(f"config argument '{name}' needs a value: {name}={defaults[name]}")
    else:
      try:
        values[name] = kind(text)
      except ValueError:
        raise ValueError(f"config argument '{item}': '{name}' takes a value of type {kind.__name__}") from None
  return ConfigDict(values)


def parse_flags(argv) -> list[str]:
  """The command line, and the config file with it; a mistake is one line, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    # What went wrong with files while the config was loaded is raised where it is first looked at.
    dict(flags.FLAGS.config or {})
    return rest
  except OSError as e:
    said = str(e).strip().splitlines()[-1].strip().removeprefix(LATE)
    missing = re.search("No such file or directory: '(.+)'", said)
    sys.exit(f"error: --config{_missing(Path(missing[1])) if missing else f': {said}'}")
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    while e.args and isinstance(e.args[0], Exception):
      e = e.args[0]
    said = _unknown(str(e.args[0]), argv) if isinstance(e, KeyError) and e.args else str(e).replace("\\n", "\n")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    sys.exit(f"error: {lines[-1].removeprefix('ValueError: ') if 'Traceback' in said else ' '.join(lines)}")


def _missing(path: Path) -> str:
  """Says that a config is not there, and where one is."""
  known = sorted(file.name for file in path.parent.glob("*.py"))
  meant = difflib.get_close_matches(path.name, known, n=1)
  if meant:
    return f"={path}: no such file; is {path.with_name(meant[0])} meant?"
  if known:
    return f"={path}: no such file; in {path.parent} are {', '.join(known)}"
  return f"={path}: no such file; run this in the folder of coca's checkout, where configs/ is, or give the whole path"


def _unknown(said: str, argv: list[str]) -> str:
  """ml_collections names one part alone of a setting that is not there: 'lrr'."""
  names = (arg.partition("=")[0] for arg in argv if arg.startswith("--config."))
  flag = next((name for name in names if any(f"'{part}'" in said for part in name.split("."))), "--config")
  return f"{flag}: no such setting: {said}"


@contextlib.contextmanager
def one_line(*errors: type[Exception], status: int = 1):
  """For `errors` within, and at Ctrl-C, the program ends with a line and no traceback; COCA_TRACEBACK=1 shows it."""
  try:
    yield
  except errors as e:
    # jax raises what its runtime says, such as "UNKNOWN: connection closed", as ValueError too: no mistake of a user's.
    if os.environ.get("COCA_TRACEBACK") or re.match("[A-Z_]+: ", str(e)):
      raise
    said = f"error: {e}{_where(e)}"
    if status == 1:
      sys.exit(said)
    print(said, file=sys.stderr)
    sys.exit(status)
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def _where(error: Exception) -> str:
  """The place in coca of an error of the system that names no file, as those of writing to an open one."""
  if not isinstance(error, OSError) or error.errno is None or error.filename is not None:
    return ""
  own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
  return f" (in {os.path.relpath(own[-1].filename, _PACKAGE)}, {own[-1].name})" if own else ""
