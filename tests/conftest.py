"""Eight fake CPU devices for all tests; set before jax is imported.

The programs here are tiny: XLA compiles them in a quarter of the time with its costly passes off and its older CPU
emitters. XLA ends a process that gives it a flag which it does not know, and names all of these: they are left out.
"""

import os
import subprocess
import sys

FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
         "--xla_llvm_disable_expensive_passes=true", "--xla_cpu_use_fusion_emitters=false")


def known(flags):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  said = subprocess.run(command, env=environment, capture_output=True, text=True).stderr
  unknown = said.partition("in XLA_FLAGS:")[2].split()
  return [flag for flag in flags if flag not in unknown]


os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has them from the process that started it
  os.environ["XLA_FLAGS"] = " ".join(known(FLAGS))
