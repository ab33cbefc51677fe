"""Two real processes, two devices each, joined over gloo, train as one process with four devices does; how
processes find each other, and what becomes of one that waits in vain."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from coca.devices import processes, sharding
from coca.devices.host import put_batch
from coca.training.state import Setup
from coca.training.step import TrainStep
from support import forked
from support.common import pairs, random_params, tiny
from support.processes import UNCACHED, environment, free_port

TOTAL = 20


def train():
  """The metrics of three steps, each process with the rows of its devices."""
  settings = tiny(mesh__data=1, mesh__fsdp=2, mesh__tensor=2, model__image__patch_dropout=0.4)
  mesh = sharding.make_mesh(settings.mesh, jax.devices()[:4])
  setup = Setup(settings, mesh)
  values = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setup.planned)
  values = dataclasses.replace(values, params=random_params(settings))
  state = jax.tree.map(
    lambda x, value: jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index]),
    setup.planned,
    values,
  )
  step = TrainStep(setup)

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


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  port = free_port()
  workers, logs = [], [tmp_path / "0.log", tmp_path / "1.log"]
  for i, log in enumerate(logs):
    joins = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
    command = [forked.python(), __file__, tmp_path / f"{i}.json"]
    streams = {"stdout": log.open("w"), "stderr": subprocess.STDOUT}
    workers.append(subprocess.Popen(command, env=environment(2, **joins, **UNCACHED), process_group=0, **streams))
  try:
    expected = train()
    codes = [worker.wait(timeout=300) for worker in workers]
  finally:
    for worker in workers:
      forked.kill(worker)
  assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
  for i in range(2):
    actual = json.loads((tmp_path / f"{i}.json").read_text())
    for one, other in zip(actual, expected, strict=True):
      assert one.keys() == other.keys()
      np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-6)


def test_a_process_that_waits_in_vain_says_for_what_and_ends():
  port = free_port()
  code = "from coca.devices import processes; processes.initialize('127.0.0.1:%d', 2, %d, timeout=4)"
  started = [
    subprocess.Popen([forked.python(), "-c", code % (p, i)], stderr=subprocess.PIPE, text=True, env=environment())
    for p, i in ((port, 0), (free_port(), 1))
  ]
  said = [process.communicate(timeout=120)[1] for process in started]
  assert [process.returncode for process in started] == [processes.STALLED] * 2, said
  for i in range(2):
    place = re.escape(f"{socket.gethostname()}, process {i} of 2]")
    assert re.search(place + r" waiting for all processes to join, \d+ s so far", said[i])
    assert re.search(r"waited \d+ s for all processes to join, and gives up\.", said[i]) and "initialize" in said[i]
  assert "does not answer" in said[1] and "is process 0 running" in said[1]


def test_a_watcher_that_is_late_says_for_what_it_waits_and_then_gives_up(monkeypatch, capsys):
  def end(status):
    raise SystemExit(status)

  monkeypatch.setattr(processes, "_alone", threading.Event())
  monkeypatch.setattr(processes, "_waits", [processes._Wait("the others", time.monotonic() - 60, 3, 4)])
  monkeypatch.setattr(processes.faulthandler, "dump_traceback", lambda: None)  # pytest has no stderr for it
  monkeypatch.setattr(os, "_exit", end)
  with pytest.raises(SystemExit, match=str(processes.STALLED)):
    processes._watch()
  assert re.search(r"(?s)waiting for the others, \d+ s so far.*waited \d+ s for the others", capsys.readouterr().err)


BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def joined(monkeypatch):
  """How jax.distributed.initialize is called, in an environment without a cluster."""
  for name in (*BY_HAND, "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
    monkeypatch.delenv(name, raising=False)
  calls = []

  def initialize(address, n, i, **options):
    calls.append((address, n, i))
    if address is None:
      raise ValueError("coordinator_address should be defined.")  # jax's words

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  return calls


@pytest.mark.parametrize(
  ("given", "environment", "expected"),
  [
    ((), {}, (None, None, None)),
    (("10.0.0.1:8476", 4, 0), {}, ("10.0.0.1:8476", 4, 0)),
    ((), dict(zip(BY_HAND, ("[::1]:8476", "4", "3"), strict=True)), ("[::1]:8476", 4, 3)),
    (("10.0.0.1:8476", None, 1), {"JAX_NUM_PROCESSES": "2"}, ("10.0.0.1:8476", 2, 1)),
    (("10.0.0.1:8476",), {"PMI_SIZE": "4", "PMI_RANK": "2"}, ("10.0.0.1:8476", 4, 2)),
    (("10.0.0.1:8476",), {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, ("10.0.0.1:8476", 4, 3)),
  ],
)
def test_a_process_is_told_by_flags_variables_or_mpi(joined, monkeypatch, given, environment, expected):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.initialize(*given)
  assert joined == [expected]


@pytest.mark.parametrize(
  ("given", "environment", "said"),
  [
    (
      (),
      {"JAX_NUM_PROCESSES": "2"},
      "--coordinator (JAX_COORDINATOR_ADDRESS), --process_id (JAX_PROCESS_ID) is missing",
    ),
    (("10.0.0.1:8476",), {}, "--processes (JAX_NUM_PROCESSES), --process_id (JAX_PROCESS_ID) is missing"),
    (("10.0.0.1", 2, 0), {}, "--coordinator 10.0.0.1 is no HOST:PORT"),
    (("10.0.0.1:8476", 2, 2), {}, "--process_id 2 of --processes 2: it counts from 0 to 1"),
    ((), {"PMI_SIZE": "4", "PMI_RANK": "2"}, "rank 2 of 4 of an MPI that jax does not detect: give --coordinator="),
  ],
)
def test_half_a_cluster_is_an_error(joined, monkeypatch, given, environment, said):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError) as error:
    processes.initialize(*given)
  assert said in str(error.value)


@pytest.mark.parametrize(
  ("error", "status", "said"),
  [
    (SystemExit("error: no such file"), 1, "error: no such file\n"),
    (SystemExit(70), 70, ""),
    (RuntimeError("lost"), processes.CRASHED, "RuntimeError: lost"),
  ],
)
def test_one_of_several_that_fails_ends_at_once_with_its_status(monkeypatch, capsys, error, status, said):
  monkeypatch.setattr(processes, "_several", lambda: True)
  monkeypatch.setattr(os, "_exit", lambda code: sys.exit(f"at once {code}"))
  with pytest.raises(SystemExit, match=f"at once {status}"), processes.together():
    raise error
  assert said in capsys.readouterr().err


def test_one_alone_ends_as_any_program_or_after_a_crash_at_once(monkeypatch, capsys):
  with processes.together():
    pass
  with pytest.raises(SystemExit, match="error: no such file"), processes.together():
    sys.exit("error: no such file")
  monkeypatch.setattr(os, "_exit", lambda code: sys.exit(f"at once {code}"))  # whatever its threads wait for
  with pytest.raises(SystemExit, match="at once 70"), processes.together():
    raise RuntimeError("lost")
  assert "RuntimeError: lost" in capsys.readouterr().err
  with pytest.raises(SystemExit, match="at once 70"), processes.together():
    sys.exit(processes.CRASHED)


if __name__ == "__main__":
  processes.initialize()
  assert jax.process_count() == 2 and len(jax.devices()) == 4 and len(jax.local_devices()) == 2
  Path(sys.argv[1]).write_text(json.dumps(train()))
