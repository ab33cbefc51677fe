"""Eight fake CPU devices for all tests; set before jax is imported.

The programs here are tiny: XLA compiles them in a quarter of the time with its costly passes off and its older CPU
emitters. A jaxlib that no longer knows one of these flags says so at once; they save time and nothing else.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
  "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
