"""The same job on a Ray cluster: workers hold the models, each takes one shard after the other.

Sidecars are written by the workers, so OUT, the source and the models have to lie where all nodes see them. What is
finished is read from OUT, not from Ray. On devices of one kind the bytes are those of the local engine on one of them.
"""

import contextlib
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable

import jax
from tqdm import tqdm

from coca.capfilt.job import Failures, open_job_source
from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt
from coca.capfilt.stage import Stage, failed_images, version
from coca.data import sidecars
from coca.data.records import Shard

POLL = 30.0  # seconds without news until the cluster is looked at
PATIENCE = 600.0  # seconds for another node to join when no node is left that could hold a worker
HOPELESS = 10  # shards set aside, and none finished: something is wrong with all of them
NUMERICS = (
  "jax_default_matmul_precision",
  "jax_enable_x64",
  "jax_default_prng_impl",
  "jax_threefry_partitionable",
  "jax_numpy_dtype_promotion",
)  # settings of jax that change what is computed


class WorkersFailed(RuntimeError):
  """The job can't go on: no worker starts, or all shards fail. What is finished stays."""


class Worker:
  """A process with the models loaded."""

  def start(self, out: str, settings: CapFilt, expected: dict) -> str:
    """Loads the models; returns what is wrong, or nothing. `expected` is what `_expected` gives on the driver."""
    try:
      here = {"coca": version(), "jax": jax.__version__}
      if here != expected["versions"]:
        raise ValueError(f"it has {here}, the driver {expected['versions']}: install the same on all nodes")
      os.environ["XLA_FLAGS"] = expected["xla_flags"]  # read when jax first looks for devices
      for name, value in expected["numerics"].items():
        jax.config.update(name, value)
      source = open_job_source(settings)
      models = Models(settings, devices=jax.local_devices())
      if models.identities != expected["identities"]:
        raise ValueError(
          f"it has other models at {settings.captioner!r} and {settings.filter!r}: copy them anew, or "
          "name a place that all nodes see"
        )
      self.out, self.stage = out, Stage(models, source)
      return ""
    except Exception as e:  # whatever it is, it stands in the driver's message
      return f"{socket.gethostname()}: {_reason(e)}"

  def work(self, shard: Shard) -> tuple[int, int, str]:
    """Writes the sidecar of a shard, unless too many of its own images fail; returns its `failed_images`."""
    [(name, columns)] = self.stage.run([(shard.name, range(shard.start, shard.stop))])
    Failures(self.stage.settings.max_failed).add(*failed_images(columns))
    sidecars.write(sidecars.path_of(self.out, name), columns)
    return failed_images(columns)


class _Workers:
  """Those of a job: starting, idle or busy.

  One that says why it can't start is given up: its node would say the same again. One whose process dies while it
  starts gets a successor, unless `attempts` die in a row.
  """

  def __init__(self, ray, make: Callable, attempts: int):
    self.ray, self.make, self.attempts = ray, make, attempts
    self.starting, self.idle, self.busy = {}, [], {}  # by what they return: worker; and (shard, worker)
    self.problem, self._died = "", 0

  def add(self) -> None:
    worker, ready = self.make()
    self.starting[ready] = worker

  def started(self, ready) -> None:
    worker = self.starting.pop(ready)
    try:
      problem, died = self.ray.get(ready), 0
    except self.ray.exceptions.RayError as e:
      problem, died = _reason(e), self._died + 1
    self._died = died
    if not problem:
      self.idle.append(worker)
      return
    self.ray.kill(worker)
    if 0 < died < self.attempts:
      self.add()
    else:
      self.problem = problem
      tqdm.write(f"a worker can't start on {problem}" if not died else f"workers die while they start: {problem}")

  def kill(self) -> None:
    for worker in [*self.starting.values(), *self.idle, *(worker for _, worker in self.busy.values())]:
      self.ray.kill(worker)


def run_ray(out: str, settings: CapFilt, identities: dict, pending: list[Shard]) -> dict[str, str]:
  """Runs the shards on a cluster; a shard whose worker dies or fails is tried again, elsewhere if need be.

  Returns:
    the shards set aside after `settings.attempts` failures, with the reason of the last.

  Raises:
    ImportError: Ray is not installed.
    TooManyFailed: see `Failures`.
    ConnectionError: no such cluster.
    ValueError: no node can hold a worker.
    WorkersFailed.
  """
  try:
    import ray
  except ImportError:
    raise ImportError("config.engine 'ray' needs Ray: pip install -e '.[ray]'") from None
  with _connected(ray, settings.address):
    return _run(ray, out, settings, identities, pending)


def _run(ray, out: str, settings: CapFilt, identities: dict, pending: list[Shard]) -> dict[str, str]:
  nodes = _nodes(ray)
  take = dict(settings.resources) or ({"GPU": 1.0} if any(node.get("GPU") for node in nodes) else {"CPU": 1.0})
  room = _room(nodes, take)
  if not room:
    raise ValueError(_no_room(nodes, take) + ". Wait for larger nodes to join (ray status), or change config.resources")
  able = sum(_room([node], take) > 0 for node in nodes)
  count = min(settings.workers or (room if settings.resources or "GPU" in take else able), len(pending))
  if count > room:
    print(f"there is room for {room} of {count} workers; the others start when nodes join", flush=True)
  rest = {name: amount for name, amount in take.items() if name not in ("CPU", "GPU")}
  remote = ray.remote(
    num_cpus=take.get("CPU", 0),
    num_gpus=take.get("GPU", 0),
    resources=rest,
    max_restarts=0,
    scheduling_strategy="SPREAD",
  )(Worker)
  expected = _expected(identities)

  def make():
    worker = remote.remote()
    return worker, worker.start.remote(out, settings, expected)

  todo, failed, set_aside, finished = deque(pending), Counter(), {}, 0
  failures, workers = Failures(settings.max_failed), _Workers(ray, make, settings.attempts)
  waiting = time.monotonic()
  with tqdm(total=sum(s.stop - s.start for s in pending), unit=" images", desc=f"CapFilt on {count} workers") as bar:
    try:
      for _ in range(count):
        workers.add()
      while todo or workers.busy:
        while todo and workers.idle:
          shard, worker = todo.popleft(), workers.idle.pop()
          workers.busy[worker.work.remote(shard)] = shard, worker
        if not (workers.starting or workers.busy):
          raise WorkersFailed(f"no worker is left; the last one could not start on {workers.problem}")
        done, _ = ray.wait([*workers.busy, *workers.starting], num_returns=1, timeout=POLL)
        if workers.busy or done:
          waiting = time.monotonic()
        elif not _room(_nodes(ray), take) and time.monotonic() - waiting > PATIENCE:
          raise WorkersFailed(_no_room(_nodes(ray), take) + f" for {PATIENCE:.0f} s. Start again when there are some")
        else:
          tqdm.write(
            f"no worker is ready since {time.monotonic() - waiting:.0f} s; free in the cluster: "
            + _amounts(ray.available_resources(), take)
          )
        for ref in done:
          if ref in workers.starting:
            workers.started(ref)
            continue
          shard, worker = workers.busy.pop(ref)
          try:
            result = ray.get(ref)
          except ray.exceptions.RayError as e:
            # Another process goes on: the old one may be gone, with its node, or may be what was broken.
            ray.kill(worker)
            failed[shard.name] += 1
            again = failed[shard.name] < settings.attempts
            if again:
              todo.append(shard)
            if len(todo) > len(workers.idle) + len(workers.starting):
              workers.add()
            if again:
              continue
            set_aside[shard.name] = _reason(e)
            if not finished and len(set_aside) >= HOPELESS:
              raise WorkersFailed(
                f"all of the first {HOPELESS} shards failed {settings.attempts} times:\n"
                + "\n".join(f"  {name}: {reason}" for name, reason in set_aside.items())
              ) from None
          else:
            workers.idle.append(worker)
            finished += 1
            failures.add(*result)
          bar.update(shard.stop - shard.start)
    finally:
      workers.kill()
  return set_aside


@contextlib.contextmanager
def _connected(ray, address: str):
  """Joins the cluster at `address`, or starts one here; an old connection of this process is used and stays."""
  if ray.is_initialized():
    yield
    return
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  quiet = {"log_to_driver": False, "configure_logging": False}
  help = "start one with 'ray start --head', or leave config.address empty for one on this machine"
  if match := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
    try:  # Ray itself tries for minutes
      socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except OSError as e:
      raise ConnectionError(f"config.address {address}: no Ray cluster answers there ({e}); {help}") from None
  try:
    if address:
      ray.init(address=address, **quiet)
    else:  # 'local': a file left behind by another cluster on this machine would otherwise be followed
      ray.init(address="local", include_dashboard=False, **quiet)
  except (ConnectionError, RuntimeError, ValueError) as e:
    raise ConnectionError(f"config.address {address!r}: {_reason(e)}; {help}") from None
  try:
    yield
  finally:
    ray.shutdown()


def _expected(identities: dict) -> dict:
  """The values, as in this process, that must be alike on all nodes. Fake devices are for tests and are not copied."""
  flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
  return {
    "identities": identities,
    "versions": {"coca": version(), "jax": jax.__version__},
    "xla_flags": flags.strip(),
    "numerics": {name: getattr(jax.config, name) for name in NUMERICS},
  }


def _nodes(ray) -> list[dict[str, float]]:
  """The resources of each node, free or not."""
  return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(nodes: list[dict], take: dict) -> int:
  """The number of workers that the nodes hold while nobody else works there."""
  needed = {name: amount for name, amount in take.items() if amount > 0}
  return sum(
    min((int(node.get(name, 0) / amount + 1e-6) for name, amount in needed.items()), default=1) for node in nodes
  )


def _no_room(nodes: list[dict], take: dict) -> str:
  count = Counter(_amounts(node, take) for node in nodes)
  has = "; ".join(f"{n} with {text}" for text, n in sorted(count.items()))
  return f"no node can hold a worker, which takes {_amounts(take, take)} (config.resources); the nodes: {has or 'none'}"


def _amounts(has: dict, take: dict) -> str:
  names = dict.fromkeys(["CPU", "GPU", *take]) if has is not take else take
  return ", ".join(f"{name} {has.get(name, 0):g}" for name in names)


def _reason(error: Exception) -> str:
  cause = getattr(error, "cause", None) or error
  return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
