"""Real processes that are killed or asked to stop while they save."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coca.storage.checkpoint import Checkpoints
from coca.training.preemption import Preemption
from support import forked
from support.checkpoints import abstract, arrays, assert_same, damage, largest, place, restored, with_key
from support.processes import environment, free_port


def start(script: str, *args) -> subprocess.Popen:
  return subprocess.Popen(
    [forked.python(), "-c", script, *map(str, args)],
    env=environment(),
    text=True,
    process_group=0,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


SAVES = """
import sys
from support.checkpoints import *
checkpoints = Checkpoints(sys.argv[1])
mesh = mesh_of(2, 4)
found = checkpoints.restore(abstract(with_key(arrays(0), mesh)))
first = 0
if found:
  first = found[2]
  assert_same(found[0], with_key(arrays(first), mesh))
  assert found[1] == {"step": first}
print("from", first, flush=True)
for step in range(first + 1, 10_000):
  checkpoints.save(step, with_key(arrays(step), mesh), {"step": step})
  print("began", step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_goes_on_from_an_exact_state(tmp_path):
  rng, last = np.random.default_rng(int.from_bytes(os.urandom(4))), 0
  for _ in range(3):
    process = start(SAVES, tmp_path)
    assert (line := process.stdout.readline().split())[:1] == ["from"], " ".join(line) + process.stdout.read()
    assert int(line[1]) >= last
    process.stdout.readline()
    process.stdout.readline()  # the first of this process is complete once the second has begun
    time.sleep(rng.uniform(0, 0.3))
    forked.kill(process)
    process.communicate()
    state, meta, step = restored(tmp_path)
    assert step > last and meta == {"step": step}
    assert_same(state, with_key(arrays(step)))
    last = step
  assert not list(tmp_path.glob("*damaged*"))


def test_sigterm_asks_once_and_the_handler_is_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with Preemption() as preempted:
    assert not preempted(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preempted(2) and preempted(3)
  assert signal.getsignal(signal.SIGTERM) is before


LISTENS = """
import time
from coca.training.preemption import Preemption
with Preemption() as preempted:
  print("ready", flush=True)
  while not preempted(1):
    time.sleep(0.01)
  print("asked", preempted.status, flush=True)
  time.sleep(120)
"""


def test_the_second_ctrl_c_ends_at_once():
  process = start(LISTENS)
  assert process.stdout.readline() == "ready\n"
  forked.signal(process, signal.SIGINT)
  said = [process.stdout.readline() for _ in range(3)]
  assert "once more ends it at once" in "".join(said) and said[-1] == "asked 130\n"
  forked.signal(process, signal.SIGINT)
  assert process.communicate(timeout=60)[0] == "" and process.returncode == -signal.SIGINT


PROCESS = """
import os, sys, time
import jax
from support.checkpoints import *
from coca.training.preemption import Preemption
port, index, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
checkpoints, mesh = Checkpoints(directory), mesh_of(2, 4)
def state(step):
  return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s.sharding, lambda i: np.asarray(x)[i]),
                      arrays(step), abstract_of)
abstract_of = jax.tree_util.tree_map_with_path(
  lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(
    mesh, SPECS[path[-1].key if hasattr(path[-1], "key") else path[-1].name])), arrays(0))
found = checkpoints.restore(abstract_of)
print("from", found and found[2], flush=True)
with Preemption() as preempted:
  step = found[2] if found else 0
  while True:
    step += 1
    if step % 50 == 0:
      checkpoints.save(step, state(step), {"step": step})
    if step == 50:
      print("ready", flush=True)
    if preempted(step):
      break
    time.sleep(0.002)
checkpoints.save(step, state(step), {"step": step})
checkpoints.close()
print("stopped at", step, flush=True)
"""


@pytest.mark.slow
def test_two_processes_agree_on_damage_and_on_when_to_stop(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, place(arrays(step)), {"step": step})
  checkpoints.close()
  damage(largest(tmp_path / "2"))
  port = free_port()
  processes = [start(PROCESS, port, i, tmp_path) for i in range(2)]
  with ThreadPoolExecutor(1) as pool:
    try:
      first = pool.submit(processes[0].communicate)  # what it says of damage would fill its pipe
      while (line := processes[1].stdout.readline()) and line != "ready\n":
        pass
      forked.signal(processes[1], signal.SIGINT)  # one of them only; it becomes a SIGTERM, which jax knows
      second = processes[1].communicate(timeout=600)[0]
      said = [first.result()[0], second]
    finally:
      for p in processes:
        forked.kill(p)
  steps = [re.search(r"stopped at (\d+)", s) for s in said]
  assert all(steps), "\n".join(said)
  assert "from 1\n" in said[0] and (tmp_path / "2.damaged").exists()
  assert steps[0][1] == steps[1][1]
  wanted = place(arrays(0))
  checkpoints = Checkpoints(tmp_path)
  state, _, step = checkpoints.restore(abstract(wanted))
  checkpoints.close()
  assert step == int(steps[0][1])
  assert_same(state, place(arrays(step)))
