"""Tells the costs of a config, before anyone pays.

By arithmetic and shapes alone: parameters, batch, bytes of state; `python -m coca.train --dry_run` prints it. And by
compiling the training step itself for devices that are not here:

    python -m coca.plan --config=configs/coca_giant.py --topology=v4:8x16x16 --mesh=data=32,fsdp=64

says whether it fits, what a device holds at the peak, what the devices send each other in a step, and how long the
compiler expects the config's steps to take, and where that time goes. No accelerator is used. For TPUs
`pip install -e '.[plan]'`, for GPUs `'.[plan_gpu]'`.

    --topology     v5e-256 (chips); v4-4096, v5p-12288 (TensorCores, two a chip, as Google Cloud counts); h100-256
                   (GPUs); or a shape: v4:8x16x16 chips along each axis, h100:32x8 hosts x GPUs
    --slices=2     number of them, joined along the data axis
    --search       which meshes, remat policies, batches and kernels fit, the fastest first, and its command
    --schedule     products and kernels by the compiler's finished schedules, in place of what it expects beforehand:
                   closer to published runs of v5e and v5p; compiles three times as long (TPUs)
    --mfu=0.5      a share of the devices' peak rate to reckon with, in place of what the compiler expects
    --capfilt      captioner and filter of the config's model in place of training, on one device

The exit status is 0 where it fits and 3 where it does not. For TPUs the step is compiled with the options of training
by which transfers run beside computation (`coca.devices.hardware`), for GPUs without them: they take some memory, too.
"""

import contextlib
import re
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from coca.config import parse
from coca.config.command_line import one_line, parse_flags
from coca.devices.sharding import AXES
from coca.planning import report, schedule, search, topology

NO_FIT = 3  # exit status


def mesh_setting(text: str) -> dict[str, int]:
  """'data=32,fsdp=64' -> {'data': 32, 'fsdp': 64}; axes that are not named are 1. Raises ValueError."""
  sizes = dict(item.partition("=")[::2] for item in text.split(","))
  if set(sizes) - set(AXES) or not all(re.fullmatch(r"-1|[1-9]\d*", size) for size in sizes.values()):
    raise ValueError(f"--mesh={text}: it takes devices along {', '.join(AXES)}, as data=32,fsdp=64; one may be -1")
  return dict.fromkeys(AXES, 1) | {axis: int(size) for axis, size in sizes.items()}


def main(argv) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  with one_line(ValueError, FileNotFoundError, ModuleNotFoundError), contextlib.ExitStack() as stack:
    if FLAGS.mesh and FLAGS.search:
      raise ValueError("--search tries meshes itself: leave out --mesh; --config.mesh.tensor stays as it is")
    if FLAGS.mesh:
      FLAGS.config.mesh.update(mesh_setting(FLAGS.mesh))
    config = parse(FLAGS.config)
    if FLAGS.schedule and topology.parse(FLAGS.topology)[0] in topology.GPUS:
      raise ValueError("--schedule: only the compiler for TPUs writes its schedules; leave it out")
    schedules = stack.enter_context(schedule.written()) if FLAGS.schedule else None
    devices = topology.open_topology(FLAGS.topology, FLAGS.slices)._replace(schedules=schedules)
    if FLAGS.capfilt:
      text, fits = report.fit_capfilt(config, devices, FLAGS.capfilt_batch)
    elif FLAGS.search:
      batches = [int(n) for n in FLAGS.batches] or [config.data.batch // 2, config.data.batch, 2 * config.data.batch]
      found = search.search(config, devices, batches, lambda line: print(line, flush=True))
      text, fits = "\n".join(search.search_table(found, devices)), bool(found)
      if fits:
        given = [arg for arg in sys.argv[1:] if arg.startswith("--config")]
        command = shlex.join(["python", "-m", "coca.train", *given, *search.flags_of(found[0], config)])
        text += f"\n\nthe best of these:\n{command}"
    else:
      text, fits = report.fit(config, devices, FLAGS.mfu)
    print(text)
  sys.exit(0 if fits else NO_FIT)


FLAGS = flags.FLAGS

if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", None, "a file in configs/, as configs/coca_giant.py")
  flags.DEFINE_string("topology", None, "devices to plan for: v5e-256, v4:8x16x16, h100-256")
  flags.DEFINE_integer("slices", 1, "number of such slices, joined along the data axis", lower_bound=1)
  flags.DEFINE_string("mesh", "", "devices along each axis, as data=32,fsdp=64; empty: config.mesh")
  flags.DEFINE_float("mfu", None, "share of the peak FLOP/s to reckon with, in place of the compiler's", 0.01, 1.0)
  flags.DEFINE_bool("schedule", False, "time by the compiler's finished schedules, which takes longer (TPUs)")
  flags.DEFINE_bool("search", False, "try meshes, remat policies and batches")
  flags.DEFINE_list("batches", [], "batches that --search tries; empty: the config's, half and twice that")
  flags.DEFINE_bool("capfilt", False, "plan CapFilt with the config's model, on one device")
  flags.DEFINE_integer("capfilt_batch", 64, "images at once on a device", lower_bound=1)
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main, flags_parser=parse_flags)
