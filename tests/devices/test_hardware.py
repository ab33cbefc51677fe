"""What the process is told about its memory."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import os, resource, sys, threading
import coca.train  # what it imports must not have started threads that hold memory of their own
from coca.devices.hardware import keep_memory
if child := os.fork():  # as it is in the child, and then kept
  os.waitpid(child, 0)
  keep_memory()
  import jax
  assert not jax.config.read("jax_cpu_enable_async_dispatch")  # else each call in flight takes as much for itself
def count():
  faults = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_minflt  # other threads' do not count
  bytearray(2**26)  # the first may have to come from the kernel
  before = faults()
  for _ in range(4):
    bytearray(2**26)
  print(faults() - before, flush=True)
count()
for _ in range(4):  # each is given the next of malloc's arenas
  thread = threading.Thread(target=count)
  thread.start()
  thread.join()
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries' malloc has no such settings")
def test_memory_that_is_freed_is_not_taken_from_the_kernel_anew():
  """64 MiB, as a step's temporaries, in the main thread and in others; in huge pages that is 32 faults."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
  faults = [int(line) for line in done.stdout.split()]
  as_it_is, kept = faults[:5], faults[5:]
  assert min(as_it_is) >= 4 * 32
  assert len(kept) == 5 and max(kept) < 16
