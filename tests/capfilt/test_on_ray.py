"""CapFilt on a Ray cluster of several nodes on this machine, held to the bytes of the local engine."""

import dataclasses
import json
import os
import pathlib
import re
import socket
import threading
import time
from collections import Counter

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from coca.capfilt import __main__ as command
from coca.capfilt import job, on_ray
from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt
from coca.config import Matching, Source
from coca.data import sidecars
from coca.data.records import split
from coca.decoding.settings import Decoding
from support.workdirs import make_workdir, small_config

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

# Nodes are started from a process in which jax runs; what is forked starts another program at once.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:os.fork")]
ROOT = pathlib.Path(__file__).parents[2]
PICTURES, SHARDS = 36, 12
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder of pictures, the eighth of which is broken, and one model for both purposes: the fewest programs."""
  root = tmp_path_factory.mktemp("ray")
  (root / "web").mkdir()
  rng = np.random.default_rng(0)
  lines = []
  for n in range(PICTURES):
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / "web" / f"{n:02d}.png")
    lines.append(json.dumps({"file_name": f"{n:02d}.png", "caption": f"text {n}"}))
  (root / "web" / "captions.jsonl").write_text("\n".join(lines))
  (root / "web" / "07.png").write_bytes(b"\x89PNG no picture")
  make_workdir(root / "model", small_config(root / "web", matching=Matching(weight=1.0), evals={}))
  return root


@pytest.fixture(scope="module")
def cluster():
  """A head that takes no work, and two nodes with a core each."""
  patch = pytest.MonkeyPatch()
  patch.setenv("PYTHONPATH", str(ROOT))
  patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  patch.setenv("RAY_worker_niceness", "0")  # it gives way to all else on the machine otherwise
  cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
  for _ in range(2):
    cluster.add_node(**NODE)
  yield cluster
  cluster.shutdown()
  patch.undo()


@pytest.fixture(scope="module")
def settings(root, cluster):
  source = Source(kind="folder", path=str(root / "web"), origin="web")
  model = str(root / "model")
  return CapFilt(
    captioner=model,
    filter=model,
    source=source,
    decoding=Decoding(strategy="sample", top_p=0.9),
    min_matching=0.4,
    batch=3,
    shard=3,
    threads=1,
    max_failed=0.5,
    engine="ray",
    address=cluster.address,
  )


@pytest.fixture(scope="module")
def local(root, settings):
  """The local engine's sidecars, on one device as a worker has it: identities, shards, bytes by the file's name."""
  models, source = Models(settings, devices=jax.devices()[:1]), job.open_job_source(settings)
  shards = split(source.shards, settings.shard)
  assert len(shards) == SHARDS
  job.run_local(str(root / "local"), settings, models, source, shards)
  return models.identities, shards, written(root / "local")


def written(out) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in (pathlib.Path(out) / "texts").iterdir() if path.is_file()}


def check(out, shards, expected):
  """Every record once, in the same bytes."""
  assert written(out) == expected
  numbers = [n for s in shards for n in sidecars.read(sidecars.path_of(out, s.name), ["index"])["index"].to_pylist()]
  assert Counter(numbers) == {n: 1 if n == 7 else 2 for n in range(PICTURES)}  # a broken one has no text


def instrumented(log, seconds=0.0, raises="", dies="", models=True):
  """A worker that writes down what it does, is slow, and fails at the shards (or at 'start') that it is told."""

  class Instrumented(on_ray.Worker):
    def note(self, what):
      with open(log, "a") as file:
        file.write(f"{what} {os.getpid()}\n")
      if what == dies:
        os._exit(1)
      if raises in (what, "all") and what != "start":
        raise OSError(f"no space left for {what}")
      time.sleep(seconds)

    def start(self, *args):
      self.note("start")
      return super().start(*args) if models else ""

    def work(self, shard):
      self.note(shard.name)
      return super().work(shard) if models else (0, 1, "")

  return Instrumented


def noted(log) -> list[tuple[str, int]]:
  return [(what, int(pid)) for what, pid in map(str.split, log.read_text().splitlines())]


def test_a_node_is_killed_in_the_middle(cluster, settings, local, tmp_path, monkeypatch, capsys):
  """One worker of three waits for room all the time, and so does the successor of the one that is killed."""
  identities, shards, expected = local
  log, out, seen = tmp_path / "log", tmp_path / "out", []
  monkeypatch.setattr(on_ray, "Worker", instrumented(log, seconds=0.3))

  def kill():
    while (done := len(list(out.glob("texts/*.parquet")))) < 3:
      time.sleep(0.02)
    seen.append(done)
    # Not the one that this process is connected to, which need not be the head: they all have one address.
    own = ray.get_runtime_context().get_node_id()
    cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id != own), allow_graceful=False)

  killer = threading.Thread(target=kill, daemon=True)
  killer.start()
  try:
    assert on_ray.run_ray(str(out), dataclasses.replace(settings, workers=3), identities, shards) == {}
  finally:
    killer.join(60)
    cluster.add_node(**NODE)
    cluster.wait_for_nodes(timeout=120)  # until the killed one counts as dead, the next test may be sent to it
  assert seen[0] < SHARDS and "room for 2 of 3 workers" in capsys.readouterr().out
  check(out, shards, expected)
  assert len(set(expected.values())) == SHARDS and not ray.is_initialized()
  starts = [pid for what, pid in noted(log) if what == "start"]
  work = Counter(what for what, _ in noted(log) if what != "start")
  assert len(starts) == len(set(starts)) == 2  # models are loaded once a worker
  # One was begun twice, unless the worker was killed between two shards.
  assert sum(work.values()) in (SHARDS, SHARDS + 1) and set(work) == {s.name for s in shards}


def test_poison_shards_are_set_aside_and_tried_again_later(settings, local, tmp_path, monkeypatch):
  _, shards, expected = local
  bad, deadly = shards[0].name, shards[1].name
  settings, log, out = dataclasses.replace(settings, attempts=2), tmp_path / "log", tmp_path / "out"
  monkeypatch.setattr(on_ray, "Worker", instrumented(log, raises=bad, dies=deadly))
  with pytest.raises(command.Stop) as stop:
    command.run(str(out), settings)
  assert f"2 of {SHARDS} shards failed 2 times" in str(stop.value)
  assert f"{bad}: OSError: no space left for {bad}" in str(stop.value) and f"{deadly}: ActorDied" in str(stop.value)
  assert written(out) == {k: v for k, v in expected.items() if k not in (f"{bad}.parquet", f"{deadly}.parquet")}
  tries = Counter(what for what, _ in noted(log))
  assert {tries[name] for name in (bad, deadly)} == {2} and max(tries[s.name] for s in shards) == 2
  monkeypatch.undo()
  command.run(str(out), dataclasses.replace(settings, workers=1))
  check(out, shards, expected)
  assert (out / "report.html").exists()


def test_an_interrupt_ends_the_workers(settings, local, tmp_path, monkeypatch):
  identities, shards, _ = local
  log = tmp_path / "log"
  monkeypatch.setattr(on_ray, "Worker", instrumented(log, models=False))

  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(on_ray.Failures, "add", interrupt)
  with pytest.raises(KeyboardInterrupt):
    on_ray.run_ray(str(tmp_path), dataclasses.replace(settings, workers=1), identities, shards)
  [pid], end = {pid for _, pid in noted(log)}, time.monotonic() + 60
  with pytest.raises(ProcessLookupError):
    while time.monotonic() < end:
      os.kill(pid, 0)  # only asks
      time.sleep(0.05)


def test_workers_that_cannot_start_are_an_error(settings, local, tmp_path, monkeypatch):
  identities, shards, _ = local
  settings = dataclasses.replace(settings, captioner=str(tmp_path / "nowhere"), workers=1, attempts=2)
  with pytest.raises(on_ray.WorkersFailed, match=f"could not start on {socket.gethostname()}: FileNotFound.*nowhere"):
    on_ray.run_ray(str(tmp_path), settings, identities, shards)
  log = tmp_path / "log"
  monkeypatch.setattr(on_ray, "Worker", instrumented(log, dies="start"))
  with pytest.raises(on_ray.WorkersFailed, match="could not start on ActorDied"):
    on_ray.run_ray(str(tmp_path), settings, identities, shards)
  assert len(noted(log)) == 2


def test_a_worker_refuses_other_models_and_other_versions(settings, local, tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # a worker overwrites it
  expected = on_ray._expected({"captioner": "sha256:1", "filter": "sha256:1"})
  assert "other models at" in on_ray.Worker().start(str(tmp_path), settings, expected)
  expected["versions"]["jax"] = "0.0"
  assert "install the same" in on_ray.Worker().start(str(tmp_path), settings, expected)


def test_when_all_shards_fail_the_job_ends(settings, local, tmp_path, monkeypatch):
  identities, shards, _ = local
  monkeypatch.setattr(on_ray, "HOPELESS", 2)
  monkeypatch.setattr(on_ray, "Worker", instrumented(tmp_path / "log", raises="all", models=False))
  with pytest.raises(on_ray.WorkersFailed, match=r"(?s)first 2 shards failed 1 times.*OSError: no space.*OSError: no"):
    on_ray.run_ray(str(tmp_path), dataclasses.replace(settings, workers=1, attempts=1), identities, shards)


def test_a_job_whose_nodes_are_all_gone_waits_and_ends(settings, local, tmp_path, monkeypatch, capsys):
  identities, shards, _ = local
  monkeypatch.setattr(on_ray, "POLL", 0.2)
  monkeypatch.setattr(on_ray, "PATIENCE", 1.0)
  monkeypatch.setattr(on_ray, "Worker", instrumented(tmp_path / "log", seconds=600.0))  # it never is ready
  found = iter([[{"CPU": 1.0}]])
  monkeypatch.setattr(on_ray, "_nodes", lambda ray: next(found, []))
  with pytest.raises(on_ray.WorkersFailed, match=r"takes CPU 1 .*the nodes: none for 1 s"):
    on_ray.run_ray(str(tmp_path), settings, identities, shards)
  assert re.search(r"no worker is ready since \d+ s; free in the cluster: CPU ", capsys.readouterr().out)


def test_no_cluster_or_no_room_is_said_at_once(cluster, settings, tmp_path, monkeypatch):
  run = lambda **changes: on_ray.run_ray(str(tmp_path), dataclasses.replace(settings, **changes), {}, [])  # noqa: E731
  with socket.socket() as s:  # bound, but nobody listens
    s.bind(("127.0.0.1", 0))
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers there.*ray start --head"):
      run(address=f"127.0.0.1:{s.getsockname()[1]}")
  with pytest.raises(ValueError, match=r"takes GPU 2 \(config.*the nodes: 1 with CPU 0, GPU 0; 2 with CPU 1"):
    run(resources={"GPU": 2.0})
  with pytest.raises(ValueError, match="takes CPU 1, tape_drive 1 "):
    run(resources={"CPU": 1.0, "tape_drive": 1.0})
  with pytest.raises(ValueError, match="takes CPU 2 "):  # together they have two; a worker lives on one
    run(resources={"CPU": 2.0})


def test_room():
  nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 8.0}, {"CPU": 64.0}]
  for take, room in (
    ({"GPU": 1.0}, 10),
    ({"GPU": 8.0}, 1),
    ({"GPU": 1.0, "CPU": 4.0}, 2),
    ({"CPU": 0.1}, 750),
    ({"GPU": 0.5, "CPU": 0.0}, 20),
    ({"TPU": 4.0}, 0),
    ({"CPU": 0.0}, 3),
  ):
    assert on_ray._room(nodes, take) == room


def test_what_is_alike_on_all_nodes(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2")
  before = jax.config.jax_default_matmul_precision
  try:
    jax.config.update("jax_default_matmul_precision", "highest")
    expected = on_ray._expected({})
  finally:
    jax.config.update("jax_default_matmul_precision", before)
  assert expected["xla_flags"].split() == ["--xla_a=1", "--xla_b=2"]
  assert expected["numerics"]["jax_default_matmul_precision"] == "highest" and len(expected["numerics"]) == 5


def test_cluster_file():
  cluster = yaml.safe_load((ROOT / "launch" / "ray_cluster.yaml").read_text())
  assert {"cluster_name", "provider", "auth", "head_node_type", "available_node_types"} <= set(cluster)
  assert {"type", "project_id", "region", "availability_zone"} <= set(cluster["provider"])
  types = cluster["available_node_types"]
  assert cluster["head_node_type"] in types and all("machineType" in t["node_config"] for t in types.values())
  assert sum(t.get("max_workers", 0) for t in types.values()) == cluster["max_workers"]
  # Room for a worker on each node but the head, whatever the devices are called in the file.
  rooms = {name: on_ray._room([t["resources"]], {"GPU": 1.0}) for name, t in types.items()}
  assert rooms == {"head": 0, "gpu": types["gpu"]["resources"]["GPU"]}
  schema = pathlib.Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
  pytest.importorskip("jsonschema").validate(cluster, json.loads(schema.read_text()))
