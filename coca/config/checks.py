"""Checks of what settings hold and of which go together: `check` is called before anything is read or compiled."""

from collections.abc import Callable, Sequence

from coca.config.data_checks import check_data
from coca.config.durations import in_steps
from coca.config.kind_checks import check_kind
from coca.config.loss_checks import check_losses
from coca.config.need import need
from coca.config.settings import Config
from coca.config.stages import spans
from coca.config.typed import lookup

# The least that a number may be, by path.
LEAST = {
  1: (
    "data.batch",
    "data.prefetch",
    "data.max_pixels",
    "data.tokenizer_texts",
    "optim.accumulate",
    "optim.max_nonfinite",
    "model.unroll",
    "model.text.cross_every",
    "evals.*.batch",
    "evals.*.beams",
    "evals.*.rank",
    "evals.*.texts_per_image",
    "answering.answers",
    "classification.images",
    "contrastive.texts",
    "captioning.chunk",
    "self_critical.samples",
    "self_critical.images",
    "masked.most",
    "checkpoint.keep",
    "model.text.vocab",
    "model.med.positions",
    "model.regions.width",
    "model.regions.count",
    "model.image.size",
    "stages.*.size",
    "model.image.patch",
    *(f"model.{tower}.{size}" for tower in ("image", "text") for size in ("width", "heads", "mlp")),
  ),
  2: ("model.text.length",),
  0: (
    "seed",
    "model.image.layers",
    "model.image.rope",
    "model.image.norm_eps",
    "model.text.unimodal_layers",
    "model.text.multimodal_layers",
    "model.embed_dim",
    "model.poolers.n_query",
    "model.poolers.heads",
    "model.poolers.mlp",
    "model.med.cls",
    "model.med.encode",
    "model.med.mask",
    "model.regions.tags",
    "contrastive.weight",
    "contrastive.max_scale",
    "contrastive.min_scale",
    "contrastive.queue",
    "captioning.weight",
    "captioning.prompt_tokens",
    "matching.weight",
    "matching.floor",
    "matching.group",
    "answering.weight",
    "masked.weight",
    "classification.weight",
    "self_critical.weight",
    "classification.classes",
    "classification.mixup",
    "classification.cutmix",
    "optim.lr",
    "stages.*.lr",
    "optim.final_lr",
    "optim.weight_decay",
    "optim.clip",
    "optim.lr_scale.*",
    "optim.lora.rank",
    "optim.lora.alpha",
    "data.resize",
    "data.threads",
    "data.sources.*.weight",
    "evals.*.limit",
    "evals.*.rerank",
  ),
}
ABOVE_0 = (
  "model.image.position_scale",
  "model.norm_eps",
  "model.med.norm_eps",
  "model.efficientnet.width",
  "model.efficientnet.depth",
  "model.efficientnet.norm_eps",
  "contrastive.temperature",
  "optim.eps",
  "optim.lr_decay",
  "optim.layer_decay",
  "optim.adamw_scale",
  "data.sources.*.answer_weight",
)
SHARES = (
  "captioning.parallel",
  "contrastive.soft_targets",
  "masked.share",
  "optim.layer_decay",
  "data.max_skipped",
)  # 0 to 1
DECAYS = (
  "model.image.patch_dropout",
  "model.med.dropout",
  "model.efficientnet.drop_connect",
  "model.efficientnet.norm_momentum",
  "contrastive.label_smoothing",
  "captioning.label_smoothing",
  "classification.label_smoothing",
  "contrastive.momentum",
  "optim.b1",
  "optim.b2",
  "optim.ema",
)  # from 0 to below 1


def check(c: Config) -> None:
  """Raises ValueError, which names the setting, if one holds what it may not; `typed` checks types and choices."""
  for least, paths in LEAST.items():
    _each(c, paths, lambda x, least=least: x >= least, f"is {{}}; it takes {least} or more")
  _each(c, ABOVE_0, lambda x: x > 0, "{} has to be above 0")
  _each(c, SHARES, lambda x: 0 <= x <= 1, "{} is not a share, 0 to 1")
  _each(c, DECAYS, lambda x: 0 <= x < 1, "{} is not in [0, 1)")
  _towers(c)
  check_losses(c)
  check_kind(c)
  check_data(c)
  _optimizer(c)
  _durations(c)


def _each(c: Config, paths: Sequence[str], fits: Callable[[float], bool], message: str) -> None:
  for path in paths:
    for where, value in lookup(c, path.split("."), "config"):
      need(fits(value), f"{where} {message.format(value)}")


def _towers(c: Config) -> None:
  image, text, poolers = c.model.image, c.model.text, c.model.poolers
  need(
    c.model.kind == "align" or image.size % image.patch == 0,
    f"config.model.image.size {image.size} is no multiple of patch {image.patch}",
  )
  for name, tower in (("image", image), ("text", text)):
    need(
      tower.width % tower.heads == 0, f"config.model.{name}.width {tower.width} is no multiple of heads {tower.heads}"
    )
  need(
    image.position_init != "sincos2d" or image.width % 4 == 0,
    f"config.model.image.position_init 'sincos2d' takes a width of a multiple of 4, not {image.width}",
  )
  need(
    not image.rope or image.width // image.heads % 4 == 0,
    f"config.model.image.rope takes heads of a width of a multiple of 4, not {image.width // image.heads}",
  )
  heads, has_matching = poolers.heads or image.heads, c.matching.weight > 0
  has_pooler = poolers.kind not in ("class_token", "mean") or poolers.n_query or has_matching
  width = poolers.width or text.width
  need(
    c.model.kind != "coca" or width % heads == 0 or not has_pooler,
    f"config.model.poolers.heads {heads} does not divide the poolers' width {width} (the text width, unless "
    "config.model.poolers.width says otherwise)",
  )
  need(
    c.classification.weight == 0 or c.classification.pool != "attention" or image.width % heads == 0,
    f"config.model.poolers.heads {heads} does not divide config.model.image.width {image.width}, that of the class "
    "head's pooler",
  )
  need(min(image.std) > 0, f"config.model.image.std {image.std} has to be above 0")
  need(
    poolers.kind != "class_token" or image.class_token,
    "config.model.poolers.kind 'class_token' needs config.model.image.class_token",
  )
  need(
    poolers.kind != "openclip" or poolers.n_query > 1,
    "config.model.poolers.kind 'openclip' needs config.model.poolers.n_query above 1: the first query is the image "
    "embedding's",
  )
  need(not poolers.mlp or poolers.norm, "config.model.poolers.mlp needs config.model.poolers.norm: it reads the norm")
  need(
    text.mask == "causal" or text.multimodal_layers == 0,
    "config.model.text.mask 'full' needs config.model.text.multimodal_layers 0: the decoder would see the words "
    "that it has to predict",
  )
  need(
    not text.two_passes
    or (c.model.kind == "coca" and text.pool == "cls" and text.unimodal_layers == text.multimodal_layers > 0),
    "config.model.text.two_passes needs config.model.kind 'coca', config.model.text.pool 'cls' and as many "
    f"unimodal_layers ({text.unimodal_layers}) as multimodal_layers ({text.multimodal_layers}): they are the same",
  )
  need(
    text.cross_every == 1 or (c.model.kind == "coca" and text.multimodal_layers % text.cross_every == 0),
    f"config.model.text.cross_every {text.cross_every} needs config.model.kind 'coca' and has to divide "
    f"config.model.text.multimodal_layers {text.multimodal_layers}",
  )
  need(
    text.mask == "causal" or text.pool != "cls",
    "config.model.text.mask 'full' needs config.model.text.pool 'last' or 'eos': there is no mask for [CLS] in it",
  )


def _optimizer(c: Config) -> None:
  need(c.seed < 2**32, f"config.seed is {c.seed}; it has to be below 2 ** 32")
  need(
    c.data.batch % c.optim.accumulate == 0,
    f"config.data.batch {c.data.batch} is no multiple of config.optim.accumulate {c.optim.accumulate}",
  )
  need(
    c.init_from or not c.optim.lora.rank,
    "config.optim.lora adapts a model that is there: say where by config.init_from",
  )
  need(
    c.contrastive.max_scale == 0 or c.contrastive.min_scale <= c.contrastive.max_scale,
    f"config.contrastive.min_scale {c.contrastive.min_scale} is above max_scale {c.contrastive.max_scale}",
  )


def _durations(c: Config) -> None:
  for where, value in (
    ("steps", c.steps),
    ("log_every", c.log_every),
    ("optim.warmup", c.optim.warmup),
    ("optim.epoch", c.optim.epoch),
    ("contrastive.soft_ramp", c.contrastive.soft_ramp),
    ("checkpoint.every", c.checkpoint.every),
    ("checkpoint.keep_every", c.checkpoint.keep_every),
    *((f"evals.{k}.every", e.every) for k, e in c.evals.items()),
    *((f"stages.{k}.until", s.until) for k, s in c.stages.items()),
    *((f"stages.{k}.warmup", s.warmup) for k, s in c.stages.items()),
  ):
    try:
      in_steps(value, c.data.batch, None if where == "steps" else 1)
    except ValueError as e:
      raise ValueError(f"config.{where}: {e}") from None
  need(0 < c.total_steps < 2**31, f"config.steps {c.steps!r} are {c.total_steps:,}; it takes 1 to {2**31 - 1:,} steps")
  _stages(c)
  need(in_steps(c.log_every, c.data.batch, 1), f"config.log_every is {c.log_every!r}; it takes a step or more")
  if c.optim.schedule == "epochs":
    warmup, epoch = (in_steps(duration, c.data.batch, c.total_steps) for duration in (c.optim.warmup, c.optim.epoch))
    need(epoch > 0, "config.optim.schedule 'epochs' needs config.optim.epoch, how long one is, e.g. '14e6 examples'")
    need(c.optim.lr_decay <= 1, f"config.optim.lr_decay {c.optim.lr_decay} is not in (0, 1]")
    need(
      warmup <= epoch,
      f"config.optim.warmup {c.optim.warmup!r} is longer than config.optim.epoch "
      f"{c.optim.epoch!r} ({warmup} and {epoch} steps): schedule 'epochs' wants it within the first epoch",
    )


def _stages(c: Config) -> None:
  for name, stage in c.stages.items():
    need(
      c.model.kind == "align" or stage.size % c.model.image.patch == 0,
      f"config.stages.{name}.size {stage.size} is no multiple of config.model.image.patch {c.model.image.patch}",
    )
  need(not c.stages or not c.model.reads_regions, "config.stages is for images, and this model reads their regions")
  need(not c.stages or c.optim.schedule != "epochs", "config.stages needs another config.optim.schedule than 'epochs'")
  ends = [span.last for span in spans(c)]
  need(
    all(a < b for a, b in zip([0, *ends], ends, strict=False)),
    f"the stages end at the steps {', '.join(map(str, ends))}, the last with the run: each needs a step of its own, so "
    "change config.stages.NAME.until or config.steps",
  )
