"""The one training loop, for every config; `python -m coca.train` calls it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from coca.config import Config, to_dict
from coca.config.durations import in_steps
from coca.data.feed import DeviceFeed
from coca.data.pipeline import open_sources, rows_of, train_batches
from coca.data.survey import survey
from coca.devices import processes, sharding
from coca.devices.batch import batch_arithmetic
from coca.evals import build
from coca.evals.contact_sheet import write_contact_sheet
from coca.inference.forward import Forward
from coca.models.flops import flops_per_pair
from coca.storage.checkpoint import Checkpoints
from coca.storage.lock import locked
from coca.storage.workdir import saved_steps
from coca.training.begin import begin, check_folder, check_same_run
from coca.training.curves import plot_curves
from coca.training.evaluation import evaluated
from coca.training.init_from import compare, start_from
from coca.training.limits import Skipped, check
from coca.training.metrics import Metrics
from coca.training.preemption import Preemption
from coca.training.state import Setup
from coca.training.step import TrainStep
from coca.training.trace import traced


def run(config: Config, workdir: Path, profile: bool = False) -> int:
  """Trains to the end, or until it is asked to stop (SIGTERM, Ctrl-C). All processes call this.

  Args:
    config: what to train, and on what.
    workdir: of the run, see `coca.train`.
    profile: whether to write a trace of a few early steps for TensorBoard's profiler.

  Returns:
    the exit status: 0 at the end, 143 after a SIGTERM, 130 after a Ctrl-C.

  Raises:
    ValueError, FileNotFoundError: settings or data that cannot be used; before anything is compiled.
    Locked: another run is in the workdir.
    Stop, TooManySkipped, CheckpointError: the run cannot go on.
  """
  mesh = sharding.make_mesh(config.mesh)
  batch_arithmetic(config, mesh.size)
  setup = Setup(config, mesh)
  check_folder(workdir)
  with locked(workdir):
    return _run(setup, workdir, profile)


def _run(setup: Setup, workdir: Path, profile: bool) -> int:
  config, mesh, total = setup.config, setup.mesh, setup.config.total_steps

  # --- Data: all is judged before anything is written ---
  check_same_run(config, workdir)
  if config.init_from and not saved_steps(workdir):
    compare(config.init_from, config)
  sources = open_sources(config)
  eval_sources = build.open_sources(config)

  # --- Tokenizer, evaluators, state ---
  tokenizer, said = begin(config, sources, workdir)
  if jax.process_index() == 0:
    said += [f"data: {line}" for source in sources.values() for line in source.problems[:3]]
    said += [f"data: {line}" for line in survey(config, sources, tokenizer)]
  forward = Forward(config, mesh)
  evaluators = build.make_evaluators(config, forward, tokenizer, *eval_sources)
  checkpoints = Checkpoints(
    workdir / "checkpoints", config.checkpoint.keep, in_steps(config.checkpoint.keep_every, config.data.batch, total)
  )
  with processes.waiting("all processes to read the checkpoint"):
    restored = checkpoints.restore(setup.planned)
  if restored:
    state, _, start = restored
  else:
    state, start = setup.init_state(), 0
    if config.init_from:
      state, loaded = start_from(config.init_from, config, state, mesh)
      said.append(loaded)
  skipped = Skipped(config.data.max_skipped, config.data.batch, start, int(state.unusable))
  step_fn = TrainStep(setup)

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
          values = {f"eval/{name}/{key}": float(value) for key, value in evaluator.run(state.best_params)}
        metrics.write(step, values)
        metrics.say(f"step {step}/{total}  " + "  ".join(f"{key[5:]} {value:.4g}" for key, value in values.items()))

  # --- Loop ---
  log_every = in_steps(config.log_every, config.data.batch, total)
  save_every = in_steps(config.checkpoint.every, config.data.batch, total)
  flops = flops_per_pair(config)["total"]
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

    # --- Images ---
    close()
    metrics.flush()
    write_contact_sheet(evaluators, state.best_params, workdir / "contact_sheet.png")
    if jax.process_index() == 0:
      made = ["metrics.jsonl", plot_curves(workdir).name] + ["contact_sheet.png"] * bool(evaluators)
      metrics.say(f"done: {', '.join(made)} and the model are in {workdir}; use it with coca.load({str(workdir)!r})")
  return 0


@contextlib.contextmanager
def saved(close: Callable) -> Iterator[None]:
  """Saves to the end what is being saved, should an error end the run; the error is what is told."""
  try:
    yield
  except Exception:
    with contextlib.suppress(Exception):
      close()
    raise
