"""Eight fake CPU devices for all tests; set before jax is imported.

The programs here are tiny: XLA compiles them in a fifth of the time with its costly passes off, its older CPU emitters
and no inlining of its own. XLA ends a process that gives it a flag which it does not know, and names all of these: they
are left out.
"""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_llvm_force_inline_before_split=false",
  "--xla_cpu_parallel_codegen_split_count=1",
)


def known(flags):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  said = subprocess.run(command, env=environment, capture_output=True, text=True).stderr
  unknown = said.partition("in XLA_FLAGS:")[2].split()
  return [flag for flag in flags if flag not in unknown]


os.environ["JAX_PLATFORMS"] = "cpu"
# Each fake device may wait in several collectives at a time, a thread each; with XLA's 8 threads for 8 devices they
# wait for ever, or until it aborts. NPROC is the number of processors that it believes in.
os.environ["NPROC"] = "32"
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has them from the process that started it
  os.environ["XLA_FLAGS"] = " ".join(known(FLAGS))

# What takes a moment to compile is compiled once, until it changes: half of all the tests' time from the second run on.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
# jaxlib complains of each that it finds there, of this machine though they are, 3.5 KB a time.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Each call there is checked against its annotations; modules that are imported before this are not.
install_import_hook(["coca.models", "coca.objectives"], "beartype.beartype")

from coca.devices.hardware import collect_seldom  # noqa: E402

collect_seldom()


@pytest.fixture
def libtpu(monkeypatch):
  """For tests that compile for TPUs: its compiler, which ends the process where it finds flags of XLA's for CPUs."""
  if not importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is not installed (pip install -e '.[plan]')")
  import jax

  jax.devices()  # the CPU's client has read them
  monkeypatch.delenv("XLA_FLAGS")


def pytest_configure():
  # In the background of a script Ctrl-C is ignored, and what tests start would inherit that.
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
  gc.freeze()  # what was imported and collected stays


def pytest_collection_modifyitems(items):
  """Files with slow tests come first, so that no worker is left alone with one in the end."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)
