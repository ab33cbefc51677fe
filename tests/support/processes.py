"""What tests that start other processes need."""

import contextlib
import os
import runpy
import socket
import sys
from pathlib import Path

import grain  # noqa: F401  its flags, which stay, are there before `own_flags` looks
import pytest
from absl import app, flags

from coca.devices import hardware, processes

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def environment(devices=8, **variables):
  """This process' environment, with this checkout and `support` to import, and so many fake devices."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
  return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "XLA_FLAGS": flags, **variables}


# Of processes that are joined: with a filled cache gloo ended both, of different collectives (jaxlib 0.10.1). Probably
# one ran what it found, and the other what it compiled.
UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def small_run(folder, evals) -> str:
  """--config= of a file that is written into `folder`: coca_tiny's short run with fewer words and layers, and `evals`
  alone."""
  file = folder / "small_run.py"
  file.write_text(f"""import runpy
def get_config():
  config = runpy.run_path({str(ROOT / "configs" / "coca_tiny.py")!r})["get_config"]("emoji,runlocal")
  config.data.tokenizer_texts = config.model.text.vocab = 300
  config.update(log_every="2")
  config.model.image.layers = config.model.unroll = 1
  config.optim.name = "adamw"  # Muon takes a second longer to compile
  config.checkpoint.every, config.data.batch = "3", 16
  config.evals = {{name: config.evals[name] for name in {evals!r}}}
  for settings in config.evals.values():
    settings.limit = 32
  return config
""")
  return f"--config={file}"


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def own_flags():
  """Undoes what a program of absl's defines and parses, so that the next one can."""
  known = set(flags.FLAGS)
  try:
    yield
  finally:
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)


def run_here(file, *arguments):
  """A program of absl's in this process, which has started Python and jax already.

  Returns:
    what it ends with: None, a status or what is said of its error.
  """
  with own_flags(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", [str(file), *map(str, arguments)])
    patch.setattr(app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))  # it can be called once only
    patch.setattr(processes, "initialize", lambda *args: None)
    patch.setattr(processes, "_end", sys.exit)
    patch.setattr(hardware, "keep_memory", lambda: None)
    try:
      runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
      return end.code
