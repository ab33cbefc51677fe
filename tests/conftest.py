"""Eight fake CPU devices for all tests; set before jax is imported.

The programs here are tiny: XLA compiles them in half the time with its costly passes off.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
  "--xla_llvm_disable_expensive_passes=true"
)
