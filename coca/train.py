"""Trains a model: the one loop, for every config.

    python -m coca.train --config=configs/coca_tiny.py --workdir=runs/tiny

Run again with the same workdir, it goes on where it was; killed at any moment, it ends with the same parameters. On
several hosts, start the same command on each. In the workdir: config.json, tokenizer.model, checkpoints/,
metrics.jsonl, tensorboard/, and in the end curves.png and contact_sheet.png.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from coca import evals, plan
from coca.config import Config, parse, to_dict
from coca.config.command_line import one_line, parse_flags
from coca.config.durations import in_steps
from coca.data.feed import DeviceFeed, Skipped, TooManySkipped
from coca.data.pipeline import open_sources, rows_of, train_batches
from coca.data.survey import survey
from coca.devices import processes, sharding
from coca.devices.host import from_first
from coca.evals.contact_sheet import write_contact_sheet
from coca.inference.forward import Forward
from coca.storage.checkpoint import CheckpointError, Checkpoints
from coca.storage.lock import Locked, locked
from coca.storage.workdir import local, saved_steps
from coca.training.begin import begin, check_folder, check_same_run
from coca.training.curves import plot_curves
from coca.training.init_from import compare, start_from
from coca.training.metrics import Metrics
from coca.training.metrics import read as read_metrics
from coca.training.preemption import Preemption
from coca.training.step import init_state, make_train_step, planned_state


class Stop(RuntimeError):
  """The run cannot go on; the message says why and what to do."""


def run(config: Config, workdir: Path, profile: bool = False) -> int:
  """Trains to the end, or until it is asked to stop (SIGTERM, Ctrl-C). All processes call this.

  Args:
    config: what to train, and on what.
    workdir: see above.
    profile: whether to write a trace of a few early steps for TensorBoard's profiler.

  Returns:
    the exit status: 0 at the end, 143 after a SIGTERM, 130 after a Ctrl-C.

  Raises:
    ValueError, FileNotFoundError: settings or data that cannot be used; before anything is compiled.
    Locked: another run is in the workdir.
    Stop, TooManySkipped, CheckpointError: the run cannot go on.
  """
  total = in_steps(config.steps, config.data.batch)
  mesh = sharding.make_mesh(config.mesh)
  plan.batch_arithmetic(config, mesh.size)
  planned = planned_state(config, total, mesh)
  check_folder(workdir)
  with locked(workdir):
    return _run(config, workdir, profile, total, mesh, planned)


def _run(config: Config, workdir: Path, profile: bool, total: int, mesh, planned) -> int:
  # --- Data: all is judged before anything is written ---
  check_same_run(config, workdir)
  if config.init_from and not saved_steps(workdir):
    compare(config.init_from, config)
  sources = open_sources(config)
  eval_sources = evals.open_sources(config)

  # --- Tokenizer, evaluators, state ---
  tokenizer, said = begin(config, sources, workdir)
  if jax.process_index() == 0:
    said += [f"data: {line}" for source in sources.values() for line in source.problems[:3]]
    said += [f"data: {line}" for line in survey(config, sources, tokenizer)]
  forward = Forward(config, mesh)
  evaluators = evals.make_evaluators(config, forward, tokenizer, *eval_sources)
  checkpoints = Checkpoints(
    workdir / "checkpoints", config.checkpoint.keep, in_steps(config.checkpoint.keep_every, config.data.batch, total)
  )
  with processes.waiting("all processes to read the checkpoint"):
    restored = checkpoints.restore(planned)
  if restored:
    state, _, start = restored
  else:
    state, start = init_state(config, total, mesh), 0
    if config.init_from:
      state, loaded = start_from(config.init_from, config, state, mesh)
      said.append(loaded)
  skipped = Skipped(config.data.max_skipped, config.data.batch, start, int(state["unusable"]))
  step_fn = make_train_step(config, total, state, mesh)

  def params():
    return state.get("ema", state["params"])

  def save(step):
    meta = {"config": to_dict(config).to_dict(), "tokenizer_sha256": tokenizer.sha256,
            "data": {"seed": config.seed, "step": step}}
    with processes.waiting(f"all processes to save step {step}"):
      metrics.flush()
      checkpoints.save(step, state, meta)

  def close():
    with processes.waiting("the last checkpoint to be written"):
      checkpoints.close()

  def paused():
    return metrics.paused(state)

  def evaluate(step, done=()):
    for name, evaluator in evaluators.items():
      every = in_steps(config.evals[name].every, config.data.batch, total)
      if name not in done and (step == total or (every and step and step % every == 0)):
        with processes.waiting(f"step {step}"):
          jax.block_until_ready(state)
        with paused():
          values = {f"eval/{name}/{key}": float(value) for key, value in evaluator.run(params())}
        metrics.write(step, values)
        metrics.say(f"step {step}/{total}  " + "  ".join(f"{key[5:]} {value:.4g}" for key, value in values.items()))

  # --- Loop ---
  log_every = in_steps(config.log_every, config.data.batch, total)
  save_every = in_steps(config.checkpoint.every, config.data.batch, total)
  flops = plan.flops_per_pair(config)["total"]
  rows = rows_of(sharding.batch_sharding(mesh), config.data.batch)
  batches = train_batches(config, sources, tokenizer, rows, start)
  numbers = {}
  logged = None  # step and numbers of the log before, which are there by now
  with (
    saved(close),
    Metrics(workdir, start, total, config.data.batch, flops) as metrics,
    DeviceFeed(batches, forward.put) as feed,
    Preemption() as preempted,
  ):
    metrics.say(f"{'going on from step ' + str(start) if start else 'starting'}: {total} steps of {config.data.batch} "
                f"pairs on {mesh.size} {mesh.devices.flat[0].device_kind} device(s); workdir {workdir}")
    for line in said:
      metrics.say(line)
    evaluate(start, evaluated(evaluators, workdir, start))
    steps = range(start + 1, total + 1)
    for step in traced(steps, workdir / "tensorboard", paused, metrics.say) if profile else steps:
      with processes.waiting(f"step {step}"):
        with metrics.waiting(numbers.get("loss")):
          batch, problems = next(feed)
        skipped.add(problems)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          state, numbers = step_fn(state, batch)
        if step % log_every == 0 or step in (start + 1, total):
          metrics.log(step, {name if "/" in name else f"train/{name}": x for name, x in numbers.items()})
          check(logged, skipped, config, workdir, checkpoints.wait)
          logged = step, numbers
        stop = preempted(step)
      if step == total or stop or (save_every and step % save_every == 0):
        save(step)
      if stop and step < total:
        close()
        metrics.say(f"stopped at step {step} and saved; the same command goes on from here")
        return preempted.status
      evaluate(step)
    check(logged, skipped, config, workdir, checkpoints.wait)

    # --- Pictures ---
    close()
    metrics.flush()
    write_contact_sheet(evaluators, params(), workdir / "contact_sheet.png")
    if jax.process_index() == 0:
      made = ["metrics.jsonl", plot_curves(workdir).name] + ["contact_sheet.png"] * bool(evaluators)
      metrics.say(f"done: {', '.join(made)} and the model are in {workdir}; use it with coca.load({str(workdir)!r})")
  return 0


@contextlib.contextmanager
def saved(close: Callable) -> Iterator[None]:
  """Where an error ends the run, what is being saved is saved all the same, and the error is what is told."""
  try:
    yield
  except Exception:
    with contextlib.suppress(Exception):
      close()
    raise


def evaluated(evaluators: dict, workdir: Path, step: int) -> list[str]:
  """Which evaluators a run that goes on from `step` has run there already; all processes go by what the first finds."""
  if not evaluators:
    return []
  keys = {key for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == step for key in line}
  done = from_first(np.array([any(key.startswith(f"eval/{name}/") for key in keys) for name in evaluators]))
  return [name for name, is_done in zip(evaluators, done, strict=True) if is_done]


def traced(steps: range, folder: Path, paused: Callable, say: Callable) -> Iterator[int]:
  """The steps; the sixth to the tenth, or of fewer than ten the last five, are recorded in `folder` for TensorBoard."""
  recorded = steps[5:10] if len(steps) >= 10 else steps[-5:]  # the first would show compilation
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # it slows the threads that decode pictures
  for step in steps:
    if step == recorded[0]:
      with paused():
        jax.profiler.start_trace(folder, profiler_options=options)
    yield step
    if step == recorded[-1]:
      with paused():
        jax.profiler.stop_trace()
      say(f"a trace of steps {recorded[0]} to {step}: pip install tensorboard xprof; tensorboard --logdir {folder}")


def check(logged, skipped: Skipped, config: Config, workdir: Path, written: Callable) -> None:
  """Raises Stop or TooManySkipped where a run makes no sense. Looks at numbers logged before, so it never waits.

  Args:
    logged: the step and its numbers, or None.
    skipped: of the run.
    config: of the run.
    workdir: of the run.
    written: waits for the checkpoint that is being written.
  """
  if logged is None:
    return
  step, numbers = logged
  skipped.check(step, int(numbers["data/skipped"]))
  if (row := int(numbers["skipped_in_a_row"])) >= config.optim.max_nonfinite:
    written()
    said = (f"{row} steps in a row up to step {step} had a non-finite loss or gradient (config.optim.max_nonfinite "
            f"allows {config.optim.max_nonfinite}); they changed no parameter. ")
    if steps := saved_steps(workdir):
      raise Stop(f"{said}Start a new run from the newest checkpoint (there are those of {', '.join(map(str, steps))}; "
                 f"move out of {workdir / 'checkpoints'} what is not to count): another --workdir, "
                 f"--config.init_from={workdir}, and a lower config.optim.lr or config.optim.clip set")
    raise Stop(f"{said}No checkpoint was written before, so start again, in this workdir if you like, with a lower "
               "config.optim.lr or config.optim.clip set")


# --- Command line ---


def main(argv) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  status = 0
  with (processes.together(), one_line(CheckpointError, OSError, status=processes.CRASHED),
        one_line(Locked, status=processes.LOCKED),
        one_line(ValueError, FileNotFoundError, ImportError, Stop, TooManySkipped)):
    config = parse(FLAGS.config)
    if FLAGS.dry_run:
      print(plan.describe(config, jax.device_count()))
      return
    processes.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.timeout)
    workdir = local(FLAGS.workdir or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not FLAGS.workdir and jax.process_count() > 1:
      raise ValueError("on several hosts give --workdir: a folder that all of them see")
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
  flags.DEFINE_string("coordinator", "", "host:port of the first of several processes, where no cluster is detected "
                      "(coca/devices/processes.py)")
  flags.DEFINE_integer("processes", None, "how many there are", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "which this one is, from 0", lower_bound=0)
  flags.DEFINE_integer("timeout", processes.TIMEOUT, "seconds that a process waits for another", lower_bound=1)
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse_flags)
