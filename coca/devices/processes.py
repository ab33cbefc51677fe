"""The processes of one job: how they find each other, and how a wait for one that does not come ends.

On Cloud TPU, on Compute Engine's groups of TPU VMs, on GKE (with GPUs only where the package kubernetes is installed),
in Slurm and under Open MPI 4 jax detects the cluster. Anywhere else each process is told: `--coordinator=HOST:PORT
--processes=N --process_id=I`, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; ranks of another MPI
take the two numbers from it. Without any of this a process is alone.

Dead processes are noticed by jax: at once where a connection breaks, after 100 seconds without a sign of life
elsewhere. What jax does not end is a wait for a process that lives and does not come, and its own collectives have no
time-out. `waiting` has one.
"""

import contextlib
import dataclasses
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback

import jax
from jax._src.distributed import global_state  # jax tells its own address and number nowhere else; only read
from jax.experimental import multihost_utils

TIMEOUT = 1200  # seconds that a process waits for another, who may read a checkpoint or compile
# Exit statuses of what may pass when the job is started again; 1 is a mistake, which stays. LOCKED: by another
# run, see coca/storage/lock.py.
CRASHED, LOCKED, STALLED = 70, 73, 75

_BY_HAND = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
_MPI = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))  # Open MPI; MPICH and Intel MPI

_timeout = TIMEOUT
_waits = []
_joined, _alone = threading.Event(), threading.Event()


def initialize(
  coordinator: str = "", processes: int | None = None, process_id: int | None = None, timeout: int = TIMEOUT
) -> None:
  """Joins the processes of a job; before anything else of jax.

  Args:
    coordinator: host:port of the first process, where it listens; empty: as the cluster or the environment has it.
    processes: how many there are.
    process_id: which this one is, from 0.
    timeout: seconds that this process waits for the others, here and in every `waiting`.

  Raises:
    ValueError: what was given is not complete or not sensible, or this is a rank of an MPI that jax does not know.
  """
  global _timeout
  _timeout = timeout
  mpi = next(((os.environ[n], os.environ[i]) for n, i in _MPI if n in os.environ and i in os.environ), (None, None))
  given = {}
  for (flag, variable), x in zip(_BY_HAND.items(), (coordinator, processes, process_id), strict=True):
    given[f"--{flag} ({variable})"] = os.environ.get(variable) if x in (None, "") else x
  address, n, i = given.values()
  if address and n is i is None:
    n, i = mpi
  if None in (address, n, i) and (address, n, i) != (None,) * 3:
    raise ValueError(
      f"{', '.join(name for name, x in given.items() if x is None)} is missing; give all of {', '.join(given)}, or none"
    )
  n, i = (None if x is None else int(x) for x in (n, i))
  if address and n is not None and i is not None:
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
      raise ValueError(f"--coordinator {address} is no HOST:PORT")
    if not 0 <= i < n:
      raise ValueError(f"--process_id {i} of --processes {n}: it counts from 0 to {n - 1}")
  threading.Thread(target=_watch, name="waiting", daemon=True).start()
  try:
    with waiting("all processes to join", say=3):
      # `waiting` is to speak first: jax's own time-out aborts without saying more.
      jax.distributed.initialize(address, n, i, initialization_timeout=timeout + 60, shutdown_timeout_seconds=60)
  except ValueError as e:
    if "should be defined" not in str(e):  # what jax says where it detects no cluster
      raise
    if mpi[0] and int(mpi[0]) > 1:
      raise ValueError(
        f"this is rank {mpi[1]} of {mpi[0]} of an MPI that jax does not detect: give --coordinator="
        "HOST:PORT with the host of rank 0"
      ) from None
  _joined.set()
  if not _several():
    _alone.set()
  else:
    _say(f"joined, coordinator {global_state.coordinator_address}")


@contextlib.contextmanager
def together():
  """Around a whole program: all processes end together, and one that fails ends with the exit status that says why.

  The ordinary end of a Python process has jax wait for all others, who may be waiting for this one; with several
  processes a failed one therefore ends at once. So does one that crashed: it would wait for its threads, of which one
  may hang at a disk. What is no SystemExit is printed and ends with status CRASHED.
  """
  try:
    yield
    barrier("all processes to finish")
  except SystemExit as e:
    if e.code == CRASHED or (e.code and _several()):
      if not isinstance(e.code, int):
        print(e.code, file=sys.stderr)
      _end(e.code if isinstance(e.code, int) else 1)
    raise
  except BaseException:
    traceback.print_exc()
    _end(CRASHED)


def _end(status: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def barrier(what: str, limit: float | None = None) -> None:
  """Returns when all processes have come here; `what` and `limit` as in `waiting`."""
  if _several():
    with waiting(what, limit=limit):
      multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def waiting(what: str, say: float = 30, limit: float | None = None):
  """Around what needs the other processes; `what` completes "waiting for ...".

  A wait is told after `say` seconds, and then less and less often. One that is longer than `limit` seconds (None: the
  time-out of `initialize`) ends this process with status STALLED, a message and the stacks of its threads.
  """
  entry = _Wait(what, time.monotonic(), say, limit)
  _waits.append(entry)
  try:
    yield
  finally:
    _waits.remove(entry)


@dataclasses.dataclass(eq=False)
class _Wait:
  what: str
  begun: float
  say: float  # when it is told next
  limit: float | None


def _watch() -> None:
  while not _alone.wait(1):
    for wait in list(_waits):
      waited = time.monotonic() - wait.begun
      if waited >= wait.say:
        wait.say *= 2
        _say(f"waiting for {wait.what}, {waited:.0f} s so far")
      if waited >= (_timeout if wait.limit is None else wait.limit):
        _say(
          f"error: waited {waited:.0f} s for {wait.what}, and gives up.{_coordinator()} A process that is stuck or "
          "was never started has no such line in its log. This one's threads:"
        )
        faulthandler.dump_traceback()
        os._exit(STALLED)


def _several() -> bool:
  return jax.distributed.is_initialized() and global_state.num_processes > 1


def _say(text: str) -> None:
  place = socket.gethostname()
  if global_state.coordinator_address:
    place += f", process {global_state.process_id} of {global_state.num_processes}"
  print(f"[{place}] {text}", file=sys.stderr, flush=True)


def _coordinator() -> str:
  """True if the coordinator can be reached, while this process has not joined."""
  address = global_state.coordinator_address
  if _joined.is_set() or not address or not global_state.process_id:
    return ""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    return f" The coordinator at {address} answers, so that it is another process that is missing."
  except OSError as e:
    return f" The coordinator at {address} does not answer ({e}): is process 0 running, and the port open?"
