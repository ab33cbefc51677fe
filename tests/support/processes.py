"""What tests that start other processes need."""

import os
import socket
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def environment(devices=8, **variables):
  """This process' environment, with this checkout and `support` to import, and so many fake devices."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
  return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "XLA_FLAGS": flags, **variables}


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]
