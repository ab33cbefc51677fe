"""Optimizers, schedules and masks, from optax."""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from coca.config import Config
from coca.config.durations import in_steps
from coca.config.stages import spans
from coca.devices.hardware import platform
from coca.devices.trees import path_name
from coca.models.blip import SHARED
from coca.training import lora
from coca.training.layer_decay import layer_factors

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients
STATISTICS = ("/mean", "/variance")  # of batch norms, which the step moves


def make_schedule(config: Config, total: int) -> optax.Schedule:
  """Linear warm-up, then decay to `final_lr` at step `total` (CoCa section 4.1: 2 %, linear).

  Of a run in stages (`config.stages`) each has that for itself.

  'epochs' is BLIP's (section 4.1, arXiv 2201.12086, and utils.py of its code): max(lr * lr_decay^epoch, lr * final_lr)
  with epochs counted from 0 at step 0. Warm-up lies within the first one; the code begins it at a rate of 1e-6.
  """
  stages = spans(config, total)
  schedules = [_schedule(stage.config, stage.last - stage.first) for stage in stages]
  return optax.join_schedules(schedules, [stage.last for stage in stages[:-1]]) if len(stages) > 1 else schedules[0]


def _schedule(config: Config, total: int) -> optax.Schedule:
  o = config.optim
  warmup = min(in_steps(o.warmup, config.data.batch, total), total)
  rest, epoch = max(total - warmup, 1), in_steps(o.epoch, config.data.batch, total)
  decay = {
    "linear": optax.linear_schedule(o.lr, o.lr * o.final_lr, rest),
    "cosine": optax.cosine_decay_schedule(o.lr, rest, o.final_lr),
    "constant": optax.constant_schedule(o.lr),
    # Whole numbers: optax.exponential_decay divides in fp32, and epochs of 3,333 steps begin one step late.
    "epochs": lambda step: o.lr * jnp.maximum(o.lr_decay ** ((step + warmup) // epoch), o.final_lr),
  }[o.schedule]
  # The first step already moves: at step 0 the rate is lr / warmup.
  return optax.join_schedules([lambda step: o.lr * (step + 1) / max(warmup, 1), decay], [warmup])


def make_optimizer(config: Config, total: int, params) -> optax.GradientTransformationExtraArgs:
  """The optimizer of a run: `update(gradients, state, params, finite=True)`.

  With `finite` False (a bool array) the moments stay as they are, and the updates are not to be used.

  Adafactor is factored, with momentum kept in bfloat16 and the second moment's decay min(b2, 1 - t^-0.8); no clipping
  of the update and no scaling by the parameter (as in big_vision; the paper names only b1, b2 and the decay).

  Args:
    config: `optim` and `data.batch` are read.
    total: steps of the run.
    params: tree of parameters; its top level are the parts that `optim.lr_scale` names.

  Raises:
    ValueError: `optim.lr_scale` or `optim.lora` names what the model lacks.
  """
  if not config.optim.lora.rank:
    return _optimizer(config, total, params)
  lora.check(config, params)
  narrow = jax.eval_shape(lambda params: lora.new_matrices(config, params), params)
  return lora.with_lora(config, _optimizer(config, total, narrow))


def _optimizer(config: Config, total: int, params) -> optax.GradientTransformationExtraArgs:
  o = config.optim
  unknown = set(o.lr_scale) - set(params)
  if unknown:
    raise ValueError(
      f"config.optim.lr_scale names {', '.join(sorted(unknown))}; the model's parts are {', '.join(params)}"
    )
  if o.name == "adafactor":

    def decay_rate(i, p):
      return jnp.minimum(o.b2, 1 - (i + 1.0) ** -p)

    second = optax.scale_by_factored_rms(decay_rate_fn=decay_rate)
    rule = unless_skipped(optax.chain(second, optax.ema(o.b1, debias=False, accumulator_dtype=jnp.bfloat16)))
  else:
    rule = adam_in_place(o.b1, o.b2, o.eps)
    rule = muon(rule) if o.name == "muon" else rule
  schedule = make_schedule(config, total)
  factors = {} if o.layer_decay == 1 else layer_factors(config, params, idle(config))

  def scale(updates, _):
    updates = {k: _scaled(u, o.lr_scale.get(k, 1.0)) for k, u in updates.items()}
    if o.name == "muon" and o.adamw_scale != 1:
      updates = jax.tree_util.tree_map_with_path(
        lambda path, u: u if is_hidden(path_name(path)) else u * o.adamw_scale, updates
      )
    if not factors:
      return updates
    return jax.tree_util.tree_map_with_path(lambda path, u: u * factors[path_name(path)], updates)

  steps = [
    rule,
    optax.add_decayed_weights(o.weight_decay, mask=decay_mask(config, params)),
    optax.stateless(scale),
    optax.scale_by_learning_rate(schedule),
  ]
  if o.name == "lamb":
    steps.insert(2, optax.stateless(as_large_as_the_weights))
  if o.clip:
    steps.insert(0, optax.clip_by_global_norm(o.clip))

  def label(path, _):
    name = path_name(path)
    stays = lora.is_frozen(config, name) and not name.endswith((lora.A, lora.B))
    return "frozen" if stays or name.endswith(STATISTICS) else "trained"

  labels = jax.tree_util.tree_map_with_path(label, params)
  return optax.partition({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)


def adam_in_place(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
  """`optax.scale_by_adam`, with the moments written before the update is computed from them.

  Left to itself, XLA on CPU computes both at once and copies all moments first: 4.6 times the time, and as much memory
  again as the moments take.
  """

  def update(updates, state, params=None, *, finite=True, **_):
    del params

    def moment(decay, old, power):
      return jax.tree.map(lambda g, m: jnp.where(finite, decay * m + (1 - decay) * g**power, m), updates, old)

    count = state.count + jnp.int32(finite)
    mu, nu = jax.lax.optimization_barrier((moment(b1, state.mu, 1), moment(b2, state.nu, 2)))
    unbias1, unbias2 = (1 - jnp.float32(b) ** count for b in (b1, b2))
    updates = jax.tree.map(lambda m, n: m / unbias1 / (jnp.sqrt(n / unbias2) + eps), mu, nu)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2).init, update)


def as_large_as_the_weights(updates, params):
  """LAMB's step: each update times its weight's norm, by its own (arXiv 1904.00962, algorithm 2).

  Each layer of a stack is one for itself. Vectors and the temperature keep their updates: in the authors' code
  (google-research/albert, lamb_optimizer.py) what has no decay does.
  """

  def scaled(path, update, weight):
    axes = tuple(range("layers" in path_name(path).split("/"), weight.ndim))
    if len(axes) < 2:
      return update
    weight, own = (jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (weight, update))
    return update * jnp.where((weight > 0) & (own > 0), weight / own, 1)

  return jax.tree_util.tree_map_with_path(scaled, updates, params)


def muon(adam: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
  """Muon for the matrices between the first layer and the last, each of a stack for itself, and `adam` for the rest.

  The update is as large as Adam's tend to be, so that rate and decay are AdamW's (Liu et al., arXiv 2502.16982, section
  2.2: 0.2 sqrt(max(m, n))). Momentum 0.95 with Nesterov's look ahead, five Newton-Schulz steps (Jordan et al., Muon,
  2024).
  """

  def labels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if is_hidden(path_name(path)) else "adam", params)

  def as_large_as_adams(updates, _):
    return jax.tree.map(lambda u: 0.2 * max(u.shape[-2:]) ** 0.5 * u, updates)

  def matrices(params):
    return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params)

  momentum = scale_by_muon(ns_steps=0, weight_dimension_numbers=matrices)  # of Frobenius norm 1
  orthogonal = optax.stateless(lambda updates, _: jax.tree.map(orthogonalized, updates))
  rule = unless_skipped(optax.chain(momentum, orthogonal, optax.stateless(as_large_as_adams)))
  return optax.partition({"muon": rule, "adam": adam}, labels)


# The first layers and the last ones, and filters, which are no matrices.
ENDS = (
  *("patches/kernel", "softmax/kernel", "matching_head/kernel", "class_head/kernel"),
  *("conv/kernel", "stem/kernel", "depthwise/kernel"),
)


def is_hidden(path: str) -> bool:
  """True for a matrix from states to states."""
  return path.endswith("/kernel") and not path.endswith(ENDS)


def orthogonalized(x):
  """Five Newton-Schulz steps, x <- a x + b x x' x + c (x x')^2 x, of matrices [..., m, n] of Frobenius norm 1.

  Each multiplies x by a polynomial of x x'. On CPU, where products are exact to fp32, these are multiplied with each
  other, and x by the last: of m x 4m half the work. Accelerators' products in bfloat16 are too inexact for that.
  """
  a, b, c = NEWTON_SCHULZ
  if x.shape[-2] > x.shape[-1]:
    return orthogonalized(x.mT).mT
  if platform() != "cpu" or x.shape[-1] < 2 * x.shape[-2]:
    for _ in range(5):
      gram = x @ x.mT
      x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x
  gram, factor = x @ x.mT, None
  for i in range(5):
    step = a * jnp.eye(x.shape[-2]) + b * gram + c * (gram @ gram)
    factor = step if factor is None else step @ factor
    gram = step @ (step @ gram) if i < 4 else gram
  return factor @ x


def unless_skipped(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`rule`, whose state stays as it is where `finite` is False."""

  def update(updates, state, params=None, *, finite=True, **_):
    updates, new = rule.update(updates, state, params)
    return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

  return optax.GradientTransformationExtraArgs(rule.init, update)


def decay_mask(config: Config, params):
  """True where weight decay acts: not on what no loss reaches, which without a gradient stays as it is."""
  # The temperature is a logarithm: decay would pull it to 1.
  ends = ("/kernel",) if config.optim.decay_mask == "kernels" else ("",)
  spared = ("temperature/", *idle(config))
  return jax.tree_util.tree_map_with_path(
    lambda p, _: path_name(p).endswith(ends) and not path_name(p).startswith(spared), params
  )


def idle(config: Config) -> list[str]:
  """The beginnings of the paths of those parameters that no loss of a weight above 0 has a gradient for."""
  has_contrastive, has_matching, has_answering = (
    x.weight > 0 for x in (config.contrastive, config.matching, config.answering)
  )
  has_captioning = config.learns_to_write
  paths = []
  if config.model.kind == "lemon":
    return paths
  if not has_contrastive:
    paths += [
      "contrastive_pooler/",
      "image_projection/",
      "mean_norm/",
      "text_projection/",
      "temperature/",
      "unimodal/cls",
      "unimodal/norm/",
      "unimodal/projection/",
    ]
  if not (has_captioning or has_matching or config.has_text_head):
    if has_contrastive and config.model.text.two_passes:  # whose text encoder these layers are
      crossing = "multimodal/stack/layers/" + "last/" * (config.model.text.cross_every > 1)
      paths += ["multimodal/norm/", *(f"{crossing}{x}/" for x in ("cross_attention", "norm_cross", "norm_context"))]
    else:
      paths.append("multimodal/")
    if not has_contrastive and config.model.kind == "coca":  # no text is read
      paths += ["embedding/", "unimodal/"]
    if not has_contrastive or config.model.poolers.kind in ("parallel", "class_token", "mean"):
      paths.append("generative_pooler/")
  if not (has_captioning or has_answering):
    paths += ["softmax/", "caption_head/"]
  is_grounded = has_matching or has_answering or config.has_text_head or config.dialog.weight > 0
  return paths + _idle_in_bert(config, has_contrastive, has_captioning, is_grounded, has_answering)


def _idle_in_bert(config: Config, has_contrastive, has_captioning, is_grounded, has_answering) -> list[str]:
  """`idle` in BLIP's text layers: its decoder's name is that of what encoder and decoder share. `is_grounded`: the
  encoder looks at images."""
  shared = SHARED[config.model.med.sharing]
  has_masked = config.masked.weight > 0
  paths = [] if is_grounded or has_contrastive or has_masked else ["text_encoder/"]
  if not (is_grounded or has_masked):
    paths.append("fusion/")
  cross = [part for part in SHARED["all"] if "cross" in part]
  if not is_grounded:
    paths += [f"text_encoder/stack/layers/{part}/" for part in cross]
  if not (has_captioning or has_answering):
    own = [part for part in SHARED["all"] if part not in shared or (part in cross and not is_grounded)]
    paths += [f"text_decoder/stack/layers/{part}/" for part in own] if shared else ["text_decoder/"]
  return paths


def _scaled(updates, scale):
  return updates if scale == 1 else jax.tree.map(lambda u: u * scale, updates)
