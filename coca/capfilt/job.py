"""A CapFilt job in its working directory: what is to be done, what is finished, and the end of it.

OUT is laid out as coca/data/sidecars.py says. A shard is finished when its sidecar is there, so a job that was killed
goes on with the others and ends with the same bytes.
"""

import contextlib
import json

import fsspec
import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from coca.capfilt.models import Models
from coca.capfilt.report import evenly
from coca.capfilt.settings import CapFilt, described, threshold
from coca.capfilt.stage import Stage, TooManyFailed, failed_images, version
from coca.config.differing import differing
from coca.config.typed import to_plain
from coca.data import sidecars
from coca.data.records import BadRecord, Shard, ShardedRecords, split
from coca.data.sources import open_source
from coca.files import finding, reading, writing
from coca.storage.workdir import NOT_OURS

NO_VERSION = "coca"  # what a job in a checkout said in place of its version, until 0.2.0
ENOUGH = 200  # images, to judge the share of failed ones


def open_job_source(settings: CapFilt):
  """The job's source; an error names config.source."""
  return open_source(settings.source, "config.source")


def check_folder(out: str) -> None:
  """Raises ValueError unless a job can be done in `out`: in a new or an empty folder, or in that of a job."""
  fs, folder = fsspec.core.url_to_fs(out)
  fs.invalidate_cache()
  if fs.isfile(folder):
    raise ValueError(f"--workdir={out} is a file; name a folder")
  names = {path.rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False)} if fs.isdir(folder) else set()
  found = sorted(name for name in names if name != "preview" and not NOT_OURS.fullmatch(name))
  if found and "manifest.json" not in names:
    raise ValueError(
      f"{out} is neither empty nor the workdir of a CapFilt job (it has no manifest.json): it holds "
      f"{', '.join(found[:5])}{', ...' if found[5:] else ''}. Take another --workdir"
    )


def only_human(source: ShardedRecords) -> bool:
  """True if the first records hold human texts only."""
  origins = set()
  for n in range(min(len(source), 8)):
    with contextlib.suppress(BadRecord):
      origins |= {text.origin for text in source[n].texts}
  return origins == {"human"}


def begin(out: str, settings: CapFilt, source: ShardedRecords, identities: dict) -> list[Shard]:
  """Writes the manifest of a new job, or checks that of one which goes on.

  Returns:
    all shards.

  Raises:
    ValueError: the job in `out` has other settings, models or source.
  """
  shards = split(source.shards, settings.shard)
  manifest = _manifest(settings, identities, shards)
  if not exists(f"{out}/manifest.json"):
    _write_manifest(out, manifest)
    return shards
  old = sidecars.read_manifest(out)
  before, now = _filled_up(old["settings"], described(CapFilt())), manifest["settings"]
  lines = [f"  config.{name}: {was!r} before, {is_!r} now" for name, (was, is_) in differing(before, now).items()]
  lines += [
    f"  {name}: {old[name]} before, {manifest[name]} now"
    for name in ("captioner", "filter", "version")
    if old[name] not in (manifest[name], NO_VERSION)
  ]
  if lines:
    raise ValueError(
      f"{out} holds a job with other settings:\n" + "\n".join(lines) + "\nGo on with those, or take "
      "a new workdir. For another threshold set config.data.sources.<name>.min_matching in training: it "
      "needs no new job"
    )
  sidecars.check_source(old["shards"], source, out)
  sidecars.check_images(source, sidecars.probes(out, old["shards"]))
  return old["shards"]


def _filled_up(values: dict, defaults: dict) -> dict:
  """A setting that is newer than the job has its default."""

  def both(value, default):
    return _filled_up(value, default) if isinstance(value, dict) and isinstance(default, dict) else value

  return defaults | {name: both(value, defaults.get(name)) for name, value in values.items()}


def unfinished(out: str, shards: list[Shard]) -> list[Shard]:
  """Those without a (whole) sidecar."""
  whole = finding.for_each(lambda s: sidecars.is_complete(sidecars.path_of(out, s.name)), shards, "finished shards")
  return [shard for shard, is_whole in zip(shards, whole, strict=True) if not is_whole]


class Failures:
  """Ends the job when too many images have a problem: unreadable, no word written, no score.

  Shards are judged before they are written, so that those of a bad hour of the disk or the bucket are made again.
  """

  def __init__(self, most: float):
    self.most, self.bad, self.images = most, 0, 0

  def add(self, bad: int, images: int, example: str) -> None:
    """Raises TooManyFailed."""
    self.bad, self.images = self.bad + bad, self.images + images
    if self.images >= ENOUGH and self.bad > self.most * self.images:
      raise TooManyFailed(
        f"{self.bad} of {self.images} images failed, more than config.max_failed {self.most} allows, "
        f"such as: {example}\nRepair them, or raise config.max_failed, and start the job again: the "
        "finished shards stay as they are (delete those that are to be made again), this one is new"
      )


def run_local(out: str, settings: CapFilt, models: Models, source: ShardedRecords, pending: list[Shard]) -> None:
  """All shards one after the other, on all devices of this process.

  Raises:
    TooManyFailed.
  """
  failures = Failures(settings.max_failed)
  stage = Stage(models, source)
  named = ((shard.name, range(shard.start, shard.stop)) for shard in pending)
  with tqdm(total=sum(s.stop - s.start for s in pending), unit=" images", desc="CapFilt", smoothing=0.05) as bar:
    for shard, (name, columns) in zip(pending, stage.run(named), strict=True):
      failures.add(*failed_images(columns))
      sidecars.write(sidecars.path_of(out, name), columns)
      bar.update(shard.stop - shard.start)


def preview(out: str, settings: CapFilt, models: Models, source: ShardedRecords, count: int) -> str:
  """`count` records, evenly spread, in OUT/preview: a folder with their sidecar, for the report."""
  folder = f"{out}/preview"
  numbers = evenly(count, len(source))  # the report finds them by the same rule
  stage = Stage(models, source)
  shards = [Shard("preview", 0, len(source))]
  with tqdm(total=len(numbers), unit=" images", desc="preview") as bar:
    for name, columns in stage.run([("preview", numbers)]):
      sidecars.write(sidecars.path_of(folder, name), columns)
      bar.update(len(numbers))
  _write_manifest(folder, _manifest(settings, models.identities, shards) | {"preview": count})
  decide(folder, settings, shards)
  return folder


def decide(out: str, settings: CapFilt, shards: list[Shard]) -> None:
  """With `share` or `top`: finds the least score that is kept, and writes it and the column `kept`.

  Equal scores are kept alike, so there may be a few more. Stopped in the middle, it ends the same the next time.
  """
  if threshold(settings) is not None:
    return
  name, scores = settings.rank_by, []
  for shard in tqdm(shards, "scores", disable=None if len(shards) > 100 else True):
    table = sidecars.read(sidecars.path_of(out, shard.name), ["origin", name])
    of_filter = pc.not_equal(pc.fill_null(table["origin"].cast("string"), "human"), "human")
    scores.append(table.filter(of_filter)[name].drop_null().to_numpy())
  scores = np.concatenate(scores) if scores else np.zeros(0, np.float32)
  count = min(settings.top or round(settings.share * len(scores)), len(scores))
  least = float(np.partition(scores, len(scores) - count)[len(scores) - count]) if count else float("inf")
  for shard in tqdm(shards, "deciding", disable=None if len(shards) > 100 else True):
    path = sidecars.path_of(out, shard.name)
    columns = sidecars.read(path).to_pydict()
    for n, (origin, score) in enumerate(zip(columns["origin"], columns[name], strict=True)):
      if origin not in (None, "human") and columns["problem"][n] is None:
        columns["kept"][n] = score >= least
    sidecars.write(path, columns)
  # JSON has no infinity: more than any score keeps nothing.
  _write_manifest(out, sidecars.read_manifest(out) | {"threshold": {name: min(least, 2.0)}})


def exists(path: str) -> bool:
  """True if a file is there, local or at a URL."""
  try:
    reading.one(path)
    return True
  except FileNotFoundError:
    return False


def _manifest(settings: CapFilt, identities: dict, shards: list[Shard]) -> dict:
  return {
    "settings": described(settings),
    "captioner": identities["captioner"],
    "filter": identities["filter"],
    "version": version(),
    "source": to_plain(settings.source),
    "shards": shards,
    "threshold": threshold(settings),
  }


def _write_manifest(out: str, manifest: dict) -> None:
  shards = [[s.name, s.start, s.stop] for s in manifest["shards"]]
  writing.write_atomic(f"{out}/manifest.json", (json.dumps(manifest | {"shards": shards}, indent=1) + "\n").encode())
