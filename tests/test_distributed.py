"""Two real processes, four devices each, joined over gloo, train as one process with eight devices does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from common import pairs, random_params, tiny

from coca import sharding
from coca.forward import put_batch
from coca.train_step import make_train_step, planned_state

TOTAL = 20


def train():
  """The metrics of three steps, each process with the rows of its devices."""
  settings = tiny(mesh__data=1, mesh__fsdp=4, mesh__tensor=2, model__image__patch_dropout=0.4)
  mesh = sharding.make_mesh(settings.mesh)
  planned = planned_state(settings, TOTAL, mesh)
  values = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), planned) | {"params": random_params(settings)}
  state = jax.tree.map(
    lambda x, value: jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index]), planned, values
  )
  step = make_train_step(settings, TOTAL, state, mesh)

  def put(batch):
    n = len(batch["weight"])
    held = sharding.batch_sharding(mesh).addressable_devices_indices_map((n,)).values()
    rows = sorted({row for index in held for row in range(n)[index[0]]})
    assert len(rows) == n // jax.process_count()
    return put_batch({name: x[rows] for name, x in batch.items()}, mesh)

  found = []
  for i in range(3):
    state, metrics = step(state, put(pairs(settings, seed=i)))
    found.append({name: float(x) for name, x in metrics.items()})
  return found


def test_two_processes_train_as_one(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  workers, logs = [], [tmp_path / "0.log", tmp_path / "1.log"]
  for i, log in enumerate(logs):
    environment = {
      **os.environ,
      "PYTHONPATH": str(Path(__file__).parents[1]),
      "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"),
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i),
    }
    command = [sys.executable, __file__, tmp_path / f"{i}.json"]
    workers.append(subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT))
  try:
    expected = train()
    codes = [worker.wait(timeout=300) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
  for i in range(2):
    actual = json.loads((tmp_path / f"{i}.json").read_text())
    for one, other in zip(actual, expected, strict=True):
      assert one.keys() == other.keys()
      np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-6)


if __name__ == "__main__":
  sharding.initialize_distributed()
  assert jax.process_count() == 2 and len(jax.devices()) == 8 and len(jax.local_devices()) == 4
  Path(sys.argv[1]).write_text(json.dumps(train()))
