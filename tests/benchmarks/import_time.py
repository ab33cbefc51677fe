"""Import times, each the median of fresh interpreters.

python tests/benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time


def seconds(statement: str, rounds: int = 5) -> float:
  times = []
  for _ in range(rounds + 1):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    times.append(time.perf_counter() - began)
  return statistics.median(times[1:])  # the first one reads the disk


if __name__ == "__main__":
  for statement in ("pass", "import coca", "import jax, flax.nnx", "import coca.train"):
    print(f"{statement:<24} {seconds(statement):.2f} s")
