"""What the process is told about its memory."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import coca.train  # what it imports must not have started threads that hold memory of their own
from coca.devices.hardware import keep_memory
keep_memory()
import jax, jax.numpy as jnp
x = jnp.ones((4096, 16))
step = jax.jit(lambda x: jnp.maximum(x @ x.T, 0) @ x)  # 64 MiB of temporaries
for i in range(64):
  if i == 32:  # memory that other threads hold at the moment makes it grow a few times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 32 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries' malloc has no such settings")
def test_a_steps_temporaries_are_not_taken_from_the_kernel_anew():
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
  assert float(done.stdout) < 32, "MiB of 64 that the kernel had to clear again in each step"
