"""The one training loop, for every config; `python -m coca.train` calls it."""

import contextlib
from pathlib import Path

import jax

from coca.config import Config
from coca.config.differing import listed
from coca.config.durations import in_steps
from coca.config.stages import spans
from coca.data.embeddings import states_of
from coca.data.feed import DeviceFeed
from coca.data.labels import class_names
from coca.data.pipeline import open_sources, rows_of, train_batches
from coca.data.survey import survey
from coca.devices import hardware, processes, sharding
from coca.devices.batch import batch_arithmetic
from coca.evals import build
from coca.inference.embeddings import fill
from coca.inference.forward import Forward
from coca.storage.lock import locked
from coca.storage.workdir import read_labels, saved_steps
from coca.training.begin import begin, check_folder, check_same_run, check_temperature
from coca.training.curves import plot_curves
from coca.training.evaluation import Evaluation, evaluated
from coca.training.flops import flops_per_pair
from coca.training.init_from import compare
from coca.training.limits import Skipped, check
from coca.training.metrics import Metrics
from coca.training.preemption import Preemption
from coca.training.saving import Saving
from coca.training.self_critical import Critic
from coca.training.state import Setup
from coca.training.step import TrainStep
from coca.training.trace import Trace
from coca.training.trackers import check_installed


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
  check_installed(config.trackers)
  check_folder(workdir)
  with locked(workdir):
    return _run(setup, workdir, profile)


def _run(setup: Setup, workdir: Path, profile: bool) -> int:
  config, mesh, total = setup.config, setup.mesh, setup.config.total_steps

  # --- Data: all is judged before anything is written ---
  check_same_run(config, workdir)
  if not saved_steps(workdir):
    compare(config.init_from, config) if config.init_from else check_temperature(config)
  sources = open_sources(config)
  eval_sources = build.open_sources(config)
  # Answers are counted once: a run that has begun keeps its classes.
  has_begun = config.answers_by_classes and saved_steps(workdir)
  labels = read_labels(workdir) if has_begun else class_names(config, sources)

  # --- Tokenizer, evaluators, state ---
  tokenizer, said = begin(config, sources, workdir, labels)
  if jax.process_index() == 0:
    problems = [listed(source.problems, 3, "\ndata: ") for source in sources.values() if source.problems]
    said += [f"data: {line}" for line in problems]
    said += [f"data: {line}" for line in survey(config, sources, tokenizer)]
  forward = Forward(config, mesh)
  evaluators = build.make_evaluators(config, forward, tokenizer, *eval_sources, labels=labels)
  saving = Saving(setup, workdir, tokenizer.sha256)
  state, start, loaded = saving.first_state()
  skipped = Skipped(config.data.max_skipped, config.data.batch, start, int(state.unusable))
  train_step = TrainStep(setup)
  if config.data.embeddings:
    states = states_of(config)
    said += fill(config.data.embeddings, "config.data.embeddings", states, config, forward, state.params, sources)

  # --- Loop ---
  rows = rows_of(sharding.batch_sharding(mesh), config.data.batch)
  batches = train_batches(config, sources, tokenizer, rows, start, labels)
  critic = Critic(config, forward, tokenizer, sources, rows) if config.self_critical.weight else None
  steps, numbers = range(start + 1, total + 1), {}
  is_known = hardware.peak_flops(jax.devices()[0].device_kind)
  flops = [(stage.last, flops_per_pair(stage.config)["total"] if is_known else 0.0) for stage in spans(config)]

  def flops_at(step):
    return next(n for last, n in flops if step <= last)

  with (
    saving.finished(),
    Metrics(workdir, start, total, config.data.batch, flops_at, config) as metrics,
    DeviceFeed(batches, critic.put if critic else forward.put) as feed,
    Preemption() as preempted,
    Trace(steps if profile else (), workdir / "tensorboard", metrics) as trace,
  ):
    evaluation, logging = Evaluation(config, evaluators, metrics), Logging(config, start, metrics)
    metrics.say(
      f"{'going on from step ' + str(start) if start else 'starting'}: {total} steps of {config.data.batch} "
      f"pairs on {mesh.size} {mesh.devices.flat[0].device_kind} device(s); workdir {workdir}"
    )
    for line in [*said, *loaded]:
      metrics.say(line)
    evaluation.run(start, state, evaluated(evaluators, workdir, start))
    for step in steps:
      trace.before(step, state)
      with processes.waiting(f"step {step}"):
        with metrics.waiting(numbers.get("loss")):
          batch, problems = next(feed)
        skipped.add(problems)
        compiles = not train_step.is_compiled_for(batch)
        with metrics.paused(state) if compiles else contextlib.nullcontext():
          if critic:
            batch = critic(state.params, batch, step)
          if compiles:
            train_step.compile(state, batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
          state, numbers = train_step(state, batch)
        if logging.due(step):
          check(logging.log(step, numbers), skipped, config, workdir, saving.wait)
        stop = preempted(step)
      if saving.due(step) or stop:
        saving.save(step, state, metrics)
      if stop and step < total:
        saving.close()
        metrics.say(f"stopped at step {step} and saved; the same command goes on from here")
        return preempted.status
      evaluation.run(step, state)
      trace.after(step, state)
    check(logging.last, skipped, config, workdir, saving.wait)

    # --- Images ---
    saving.close()
    metrics.flush()
    from coca.evals.contact_sheet import write_contact_sheet  # its matplotlib takes 0.3 s of a start

    write_contact_sheet(evaluators, state.best_params, workdir / "contact_sheet.png")
    if evaluators:
      metrics.image(total, workdir / "contact_sheet.png")
    if jax.process_index() == 0:
      for line in skipped.said(int(state.unusable)):
        metrics.say(line)
      made = ["metrics.jsonl", plot_curves(workdir).name] + ["contact_sheet.png"] * bool(evaluators)
      metrics.say(f"done: {', '.join(made)} and the model are in {workdir}; use it with coca.load({str(workdir)!r})")
  return 0


class Logging:
  """Logs a step's numbers every `config.log_every`, at the first step and at the end."""

  def __init__(self, config: Config, start: int, metrics: Metrics):
    self._every, self._metrics = in_steps(config.log_every, config.data.batch, config.total_steps), metrics
    self._always = start + 1, config.total_steps
    self.last: tuple[int, dict] | None = None  # the step that was logged last, and its numbers

  def due(self, step: int) -> bool:
    return step % self._every == 0 or step in self._always

  def log(self, step: int, numbers: dict) -> tuple[int, dict] | None:
    """Takes numbers that need not be computed yet. Returns those of the call before, which are there by now."""
    self._metrics.log(step, {name if "/" in name else f"train/{name}": x for name, x in numbers.items()})
    before, self.last = self.last, (step, numbers)
    return before
