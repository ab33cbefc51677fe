"""Trains a model: the one loop, for every config.

    python -m coca.train --config=configs/coca_tiny.py --workdir=runs/tiny

Run again with the same workdir, it goes on where it was; killed at any moment, it ends with the same parameters. On
several hosts, start the same command on each. In the workdir: config.json, tokenizer.model, checkpoints/,
metrics.jsonl, tensorboard/, and in the end curves.png and contact_sheet.png.
"""

import signal
import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from coca.config import parse
from coca.config.command_line import one_line, parse_flags
from coca.config.help import described
from coca.devices import processes
from coca.devices.hardware import collect_seldom, keep_memory
from coca.planning import arithmetic
from coca.storage.bucket import workdir_path
from coca.storage.checkpoint import CheckpointError
from coca.storage.lock import Locked
from coca.training.limits import Stop, TooManySkipped
from coca.training.loop import run


def main(argv) -> None:
  if FLAGS.help_settings:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pager may end before the text
    with one_line(ValueError):
      print(described(argv[1:]))
    return
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  status = 0
  with (
    processes.together(),
    one_line(CheckpointError, OSError, status=processes.CRASHED),
    one_line(Locked, status=processes.LOCKED),
    one_line(ValueError, FileNotFoundError, ImportError, Stop, TooManySkipped),
  ):
    config = parse(FLAGS.config)
    if FLAGS.dry_run:
      print(arithmetic.describe(config, jax.device_count()))
      return
    keep_memory()
    collect_seldom()
    processes.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.timeout)
    workdir = workdir_path(FLAGS.workdir or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not FLAGS.workdir and jax.process_count() > 1:
      raise ValueError(
        "on several hosts give --workdir: a folder that all of them see, gs://BUCKET/RUN or s3://BUCKET/RUN"
      )
    if not FLAGS.workdir:
      print(f"workdir: {workdir}", flush=True)
    status = run(config, workdir, FLAGS.profile)
  if status:
    sys.exit(status)


FLAGS = flags.FLAGS

if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "a file in configs/, as configs/coca_tiny.py:runlocal")
  flags.DEFINE_string("workdir", "", "where everything of the run is kept; empty: a new dated folder in runs/")
  flags.DEFINE_bool("dry_run", False, "print parameters, batch and FLOPs, and exit")
  flags.DEFINE_bool("profile", False, "write a trace of steps 6 to 10 for TensorBoard's profiler, in the workdir")
  flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of the first of several processes, where no cluster is detected (coca/devices/processes.py)",
  )
  flags.DEFINE_integer("processes", None, "how many there are", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "which this one is, from 0", lower_bound=0)
  flags.DEFINE_integer("timeout", processes.TIMEOUT, "seconds that a process waits for another", lower_bound=1)
  flags.DEFINE_bool("help_settings", False, "print all settings, or those named behind it, as model.text, and exit")
  flags.register_validator(
    "config",
    lambda config: config is not None or FLAGS["help_settings"].value,
    "it takes a file in configs/; --help_settings prints what may be in one",
  )
  app.run(main, flags_parser=parse_flags)
