"""What the process is told about its memory."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import coca.train  # what it imports must not have started threads that hold memory of their own
from coca.devices.hardware import keep_memory
if sys.argv[1] == "kept":
  keep_memory()
def count():
  faults = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_minflt  # other threads' do not count
  bytearray(2**26)  # the first may have to come from the kernel
  before = faults()
  for _ in range(4):
    bytearray(2**26)
  print(faults() - before)
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

  def faults(how):
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]

  assert min(faults("as it is")) >= 4 * 32
  assert max(faults("kept")) < 16
