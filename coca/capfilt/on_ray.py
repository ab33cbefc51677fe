"""The same job on a Ray cluster: workers hold the models, each takes one shard after the other.

Sidecars are written by the workers, so OUT, the source and the models have to lie where all nodes see them. What is
finished is read from OUT, not from Ray.
"""

import os
from collections import deque

import jax
from tqdm import tqdm

from coca.capfilt.job import Failures, open_job_source
from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt
from coca.capfilt.stage import Stage, failed_images
from coca.data import sidecars
from coca.data.records import Shard


class Worker:
  """A process with the models loaded."""

  def __init__(self, out: str, settings: CapFilt, identities: dict):
    source = open_job_source(settings)
    models = Models(settings, devices=jax.local_devices())
    if models.identities != identities:
      raise ValueError(f"this node has other models at {settings.captioner!r} and {settings.filter!r}: copy them anew, "
                       "or name a place that all nodes see")
    self.out, self.stage = out, Stage(models, source)

  def work(self, shard: Shard) -> tuple[int, int, str]:
    """Writes the sidecar of a shard; returns its `failed_images`."""
    [(name, columns)] = self.stage.run([(shard.name, range(shard.start, shard.stop))])
    sidecars.write(sidecars.path_of(self.out, name), columns)
    return failed_images(columns)


def run_ray(out: str, settings: CapFilt, identities: dict, pending: list[Shard]) -> dict[str, str]:
  """Runs the shards on a cluster; a shard whose worker dies or fails is tried again, elsewhere if need be.

  Returns:
    the shards set aside after `settings.attempts` failures, with the reason of the last.

  Raises:
    ImportError: Ray is not installed.
    TooManyFailed: see `Failures`.
    ConnectionError: no such cluster.
  """
  try:
    import ray
  except ImportError:
    raise ImportError("config.engine 'ray' needs Ray: pip install 'coca[ray]'") from None
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  if not ray.is_initialized():
    # 'local': a file left behind by another cluster on this machine would otherwise be followed.
    ray.init(address=settings.address or "local", log_to_driver=False, configure_logging=False)
  take = dict(settings.resources) or {"CPU": 1.0}
  options = {"num_cpus": take.pop("CPU", 0), "num_gpus": take.pop("GPU", 0), "resources": take}
  remote = ray.remote(**options, max_restarts=0)(Worker)
  count = min(settings.workers or sum(node["Alive"] for node in ray.nodes()), len(pending))

  todo, failed, set_aside, busy = deque(pending), {}, {}, {}
  failures = Failures(settings.max_failed)
  idle = [remote.remote(out, settings, identities) for _ in range(count)]
  with tqdm(total=sum(s.stop - s.start for s in pending), unit=" images", desc=f"CapFilt on {count} workers") as bar:
    try:
      while todo or busy:
        while todo and idle:
          shard, worker = todo.popleft(), idle.pop()
          busy[worker.work.remote(shard)] = shard, worker
        [done], _ = ray.wait(list(busy), num_returns=1)
        shard, worker = busy.pop(done)
        try:
          failures.add(*ray.get(done))
          idle.append(worker)
        except ray.exceptions.RayError as e:
          failed[shard.name] = failed.get(shard.name, 0) + 1
          if failed[shard.name] >= settings.attempts:
            set_aside[shard.name] = _reason(e)
          else:
            todo.append(shard)
          # A process of its own: the old one may be gone, with its node, or may be what was broken.
          ray.kill(worker)
          idle.append(remote.remote(out, settings, identities))
          if shard.name not in set_aside:
            continue
        bar.update(shard.stop - shard.start)
    finally:
      for worker in [*idle, *(worker for _, worker in busy.values())]:
        ray.kill(worker)
  return set_aside


def _reason(error: Exception) -> str:
  cause = getattr(error, "cause", None) or error
  return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
