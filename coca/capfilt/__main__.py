r"""Bootstraps the texts of a data set: a captioner writes, a filter throws out (BLIP section 3.3).

    python -m coca.capfilt --config=configs/capfilt.py --config.captioner=runs/captioner --config.filter=runs/filter \
      --config.source.kind=webdataset --config.source.path='data/web/*.tar' --workdir=runs/capfilt

Run again with the same workdir, it goes on where it was. In the workdir: texts/, a sidecar for each shard;
manifest.json; and in the end report.html. Training reads them with

    --config.data.sources.web.sidecars=runs/capfilt

    --preview=64    a look at 64 pairs, in WORKDIR/preview/report.html, before anyone pays for the rest
    --report        writes report.html anew, of what is finished
    --export=DIR    writes the kept texts with their images, as WebDataset tars or (--export_format=parquet) Parquet
"""

import contextlib
import os
import re
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from coca.capfilt import job
from coca.capfilt.export import SUFFIXES, export
from coca.capfilt.models import Models
from coca.capfilt.on_ray import WorkersFailed, run_ray
from coca.capfilt.report import write_report
from coca.capfilt.settings import CapFilt, parse
from coca.capfilt.stage import TooManyFailed
from coca.config import Source
from coca.config.command_line import one_line, parse_flags
from coca.config.differing import listed
from coca.config.typed import from_plain
from coca.data import sidecars
from coca.data.records import ShardedRecords
from coca.data.sources import check_places, open_source, places_of
from coca.decoding.settings import Decoding, unknown
from coca.devices.hardware import collect_seldom
from coca.devices.processes import CRASHED, LOCKED
from coca.storage.checkpoint import CheckpointError
from coca.storage.lock import Locked, locked


class Stop(RuntimeError):
  """The job is not done; the message says why and what to do."""


def run(out: str, settings: CapFilt, preview: int = 0) -> None:
  """The whole job, or a preview of it.

  Raises:
    ValueError, FileNotFoundError, CheckpointError: settings, data or models that cannot be used.
    Locked: another job is in this (local) workdir.
    TooManyFailed, WorkersFailed, Stop: the job cannot go on.
  """
  job.check_folder(out)
  source = job.open_job_source(settings)
  for problem in source.problems:
    print(f"source: {problem}", flush=True)
  if job.only_human(source):
    print(
      "warning: the source's texts count as written by humans: nothing is written beside them, and all are kept. "
      "If they are the web's, say --config.source.origin=web",
      flush=True,
    )
  if settings.filter and settings.filter == settings.captioner:
    print(
      "warning: captioner and filter are one model: it lets its own mistakes pass (confirmation bias, BLIP Table "
      "4: 8 % of its texts thrown out instead of 25 %)",
      flush=True,
    )
  if settings.engine == "ray" and not preview:
    jax.config.update("jax_platforms", "cpu")  # for the models' identities; the devices here may be a worker's
  models = Models(settings)
  if preview:
    path, counts = write_report(job.preview(out, settings, models, source, preview), source, limit=preview)
    print(f"{counts}\nlook at {path}")
    return
  with locked(out) if "://" not in out else contextlib.nullcontext():
    _run(out, settings, source, models)


def _run(out: str, settings: CapFilt, source: ShardedRecords, models: Models) -> None:
  shards = job.begin(out, settings, source, models.identities)
  pending = job.unfinished(out, shards)
  if len(pending) < len(shards):
    print(f"{len(shards) - len(pending)} of {len(shards)} shards are finished", flush=True)
  set_aside = {}
  if settings.engine == "ray":
    identities = models.identities
    del models  # a worker here needs the memory
    set_aside = run_ray(out, settings, identities, pending) if pending else {}
  else:
    job.run_local(out, settings, models, source, pending)
  if set_aside:
    raise Stop(
      f"{len(set_aside)} of {len(shards)} shards failed {settings.attempts} times and were set aside:\n"
      + "\n".join(f"  {name}: {reason}" for name, reason in set_aside.items())
      + "\nThe others are finished. Start again to try them once more"
    )
  job.decide(out, settings, shards)
  path, counts = write_report(out, source)
  use = f"train with --config.data.sources.NAME.sidecars={out}"
  if not any(origin.kept for origin in counts.origins.values()):
    use = f"no text is kept, and nothing can be trained on: look at {path.name}; --config.share=0.6 keeps the best 60 %"
  print(f"{counts}\ndone: texts/ and {path.name} are in {out}; {use}")


def manifest_source(out: str) -> Source:
  """The source that a job's workdir names."""
  return from_plain(Source, sidecars.read_manifest(out).get("source", {}), f"{out}/manifest.json: source")


def main(argv) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  out = FLAGS.workdir if "://" in FLAGS.workdir else os.path.abspath(FLAGS.workdir)
  with (
    one_line(OSError, CheckpointError, status=CRASHED),
    one_line(Locked, status=LOCKED),
    one_line(ValueError, FileNotFoundError, ImportError, TooManyFailed, WorkersFailed, Stop),
  ):
    if FLAGS.export:
      check_places(places_of(manifest_source(out), "source"), FLAGS.allow_urls, f"{out}/manifest.json")
      done = export(out, FLAGS.export, FLAGS.export_format)
      print("\n".join(done.problems[:20]), end="\n" * bool(done.problems))
      print(
        f"{done.samples:,} samples in {done.files} files are in {FLAGS.export}"
        + f", beside {done.found} from before" * bool(done.found)
      )
      if done.incomplete:
        print(
          f"{len(done.problems)} images are missing in {listed(done.incomplete, 5, ', ')}: once the source is "
          "repaired, delete these files and export again"
        )
    elif FLAGS.report:
      source = manifest_source(out)
      check_places(places_of(source, "source"), FLAGS.allow_urls, f"{out}/manifest.json")
      path, counts = write_report(out, open_source(source, f"{out}/manifest.json: source"))
      print(f"{counts}\nlook at {path}")
    elif FLAGS.config is None:
      raise ValueError("--config is missing: --config=configs/capfilt.py")
    else:
      collect_seldom()
      run(out, parse(FLAGS.config), FLAGS.preview)


def parse_command(argv) -> list[str]:
  """As `parse_flags`, but a setting that `Decoding` lacks is answered with the one that is meant."""
  for argument in argv[1:]:
    found = re.match(r"--?config\.decoding\.([\w-]+)", argument)
    if found and not hasattr(Decoding(), found[1]):
      sys.exit(f"error: config.decoding.{unknown(found[1])}")
  return parse_flags(argv)


FLAGS = flags.FLAGS

if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "a file in configs/, as configs/capfilt.py")
  flags.DEFINE_string("workdir", None, "where sidecars and report are kept")
  flags.DEFINE_integer("preview", 0, "number of records for a look; 0: all, and no preview", lower_bound=0)
  flags.DEFINE_bool("report", False, "write report.html anew")
  flags.DEFINE_string("export", "", "folder for a copy of the kept pairs, with images")
  flags.DEFINE_enum("export_format", "webdataset", sorted(SUFFIXES), "of the copy")
  flags.DEFINE_bool(
    "allow_urls",
    False,
    "with --report and --export: open a source in a bucket or on the web, too, that the workdir names",
  )
  flags.mark_flag_as_required("workdir")
  app.run(main, flags_parser=parse_command)
