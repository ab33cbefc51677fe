"""What settings may hold, and which go together: `check` is called before anything is read or compiled."""

from coca.durations import in_steps
from coca.typed import lookup

ORIGINS = ("web", "synthetic", "human", "label")  # where a text can come from

CHOICES = {
  "model.kind": ("coca", "blip"),
  "model.med.sharing": ("all", "all_but_cross_attention", "all_but_self_attention", "none"),
  "model.poolers.kind": ("cascade", "parallel", "openclip", "class_token"),
  "model.text.mask": ("causal", "full"),
  "model.text.pool": ("cls", "eos", "last"),
  "model.text.cls_mask": ("words", "legacy"),
  "model.text.feedforwards": (1, 2),
  "model.activation": ("gelu", "gelu_tanh", "quick_gelu", "relu"),
  "model.dtype": ("auto", "bfloat16", "float32"),
  "model.remat": ("none", "dots", "lean", "full"),
  "model.attention": ("xla", "cudnn", "flash"),
  "contrastive.loss": ("softmax", "sigmoid", "sigmoid_ring"),
  "contrastive.directions": ("sum", "mean"),
  "contrastive.equal_texts": ("negatives", "mask", "positives"),
  "captioning.tokens": ("mean", "per_text", "sum"),
  "optim.name": ("adafactor", "adamw"),
  "optim.schedule": ("linear", "cosine", "constant", "epochs"),
  "optim.decay_mask": ("kernels", "all"),
  "data.sources.*.kind": ("builtin", "tfds", "webdataset", "parquet", "folder"),
  "data.sources.*.text": ("first", "random", "labels"),
  "data.sources.*.origin": ("", *ORIGINS),
  "data.sources.*.sample": ("text", "image"),
  "evals.*.kind": ("zero_shot", "retrieval", "captions", "matching", "vqa"),
  "evals.*.source.kind": ("builtin", "tfds", "webdataset", "parquet", "folder"),
  "evals.*.source.text": ("first", "random", "labels"),
  "evals.*.source.origin": ("", *ORIGINS),
  "evals.*.source.sample": ("text", "image"),
}
POSITIVE = ("data.batch", "data.prefetch", "optim.accumulate", "model.unroll", "evals.*.batch", "evals.*.rank",
            "answering.answers", "model.text.vocab", "model.text.length", "model.image.size", "model.image.patch",
            *(f"model.{tower}.{size}" for tower in ("image", "text") for size in ("width", "heads", "mlp")))


def check(c) -> None:
  """Raises ValueError if a setting of a `coca.config.Config` holds what it may not; the message names it."""
  for path, allowed in CHOICES.items():
    for where, value in lookup(c, path.split("."), "config"):
      if value not in allowed:
        raise ValueError(f"{where} is {value!r}; it may be {', '.join(map(repr, allowed))}")
  for path in POSITIVE:
    for where, value in lookup(c, path.split("."), "config"):
      if value < 1:
        raise ValueError(f"{where} is {value}; it takes 1 or more")
  _towers(c)
  _losses(c)
  if c.model.kind == "blip":
    _blip(c)
  _data(c)
  _durations(c)


def _need(ok, message: str) -> None:
  if not ok:
    raise ValueError(message)


def _towers(c) -> None:
  image, text, poolers = c.model.image, c.model.text, c.model.poolers
  _need(image.size % image.patch == 0, f"config.model.image.size {image.size} is no multiple of patch {image.patch}")
  _need(0 <= image.patch_dropout < 1, f"config.model.image.patch_dropout {image.patch_dropout} is not in [0, 1)")
  for name, tower in (("image", image), ("text", text)):
    _need(tower.width % tower.heads == 0,
          f"config.model.{name}.width {tower.width} is no multiple of heads {tower.heads}")
  heads, matches = poolers.heads or image.heads, c.matching.weight > 0
  pools = poolers.kind != "class_token" or poolers.n_query or matches
  _need(c.model.kind == "blip" or text.width % heads == 0 or not pools,
        f"config.model.poolers.heads {heads} does not divide the text width {text.width}")
  _need(min(image.std) > 0, f"config.model.image.std {image.std} has to be above 0")
  _need(poolers.kind != "class_token" or image.class_token,
        "config.model.poolers.kind 'class_token' needs config.model.image.class_token")
  _need(poolers.kind != "openclip" or poolers.n_query > 1,
        "config.model.poolers.kind 'openclip' needs config.model.poolers.n_query above 1: the first query is the image "
        "embedding's")
  _need(not poolers.mlp or poolers.norm, "config.model.poolers.mlp needs config.model.poolers.norm: it reads the norm")
  _need(text.mask == "causal" or text.multimodal_layers == 0,
        "config.model.text.mask 'full' needs config.model.text.multimodal_layers 0: the decoder would see the words "
        "that it has to predict")
  _need(text.mask == "causal" or text.pool != "cls",
        "config.model.text.mask 'full' needs config.model.text.pool 'last' or 'eos': there is no mask for [CLS] in it")


def _losses(c) -> None:
  text, blip, matches = c.model.text, c.model.kind == "blip", c.matching.weight > 0
  answers = c.answering.weight > 0
  _need(c.contrastive.weight > 0 or c.captioning.weight > 0 or answers, "all loss weights are 0: nothing to train")
  _need(c.contrastive.weight == 0 or text.unimodal_layers > 0,
        "config.contrastive.weight needs config.model.text.unimodal_layers above 0; or set the weight to 0")
  _need(0 <= c.captioning.parallel <= 1, f"config.captioning.parallel {c.captioning.parallel} is not a share")
  _need(c.captioning.parallel == 0 or (not blip and c.captioning.weight > 0 and text.unimodal_layers == 0),
        "config.captioning.parallel needs a captioner alone, of kind 'coca': config.captioning.weight above 0 and "
        "config.model.text.unimodal_layers 0")
  _need(c.captioning.weight == 0 or text.multimodal_layers > 0,
        "config.captioning.weight needs config.model.text.multimodal_layers above 0; or set the weight to 0")
  _need(blip or not matches or text.multimodal_layers > 0,
        "config.matching.weight needs config.model.text.multimodal_layers above 0: the head reads the multimodal "
        "decoder's outputs")
  _need(not matches or c.contrastive.weight > 0,
        "config.matching.weight needs config.contrastive.weight above 0: negatives are drawn by the contrastive "
        "similarities")
  _need(not matches or c.optim.accumulate == 1,
        f"config.matching.weight needs config.optim.accumulate 1, not {c.optim.accumulate}: a micro-batch does not "
        "hold the negatives that are drawn from the whole batch; use more devices, or config.model.remat, instead")
  _need(blip or not answers, "config.answering.weight needs config.model.kind 'blip'")
  if c.contrastive.momentum:
    _need(blip and c.contrastive.loss == "softmax" and c.contrastive.weight > 0 and c.optim.accumulate == 1,
          "config.contrastive.momentum needs config.model.kind 'blip', config.contrastive.loss 'softmax' with a weight "
          "above 0, and config.optim.accumulate 1")
    _need(0 < c.contrastive.momentum < 1 and 0 <= c.contrastive.soft_targets <= 1 and c.contrastive.queue >= 0,
          "config.contrastive.momentum and soft_targets are shares, and queue is 0 or above")
  _need(c.contrastive.momentum or not c.matching.slow_keys,
        "config.matching.slow_keys needs config.contrastive.momentum above 0")
  group = c.matching.group
  _need(group == 0 or (group > 1 and c.data.batch % group == 0),
        f"config.matching.group {group} has to be above 1 and divide config.data.batch {c.data.batch}; 0 is the whole "
        "batch")


def _blip(c) -> None:
  image, text, med = c.model.image, c.model.text, c.model.med
  encodes = max(x.weight for x in (c.contrastive, c.matching, c.answering)) > 0
  _need(image.class_token, "config.model.kind 'blip' needs config.model.image.class_token")
  _need(text.unimodal_layers > 0 or not encodes,
        "config.model.text.unimodal_layers is 0: a text encoder is needed by the contrastive, the matching and the "
        "answering loss; set their weights to 0, or give it layers")
  _need(c.answering.weight == 0 or (text.multimodal_layers > 0 and not c.captioning.weight),
        "config.answering.weight needs config.model.text.multimodal_layers above 0 and config.captioning.weight 0: the "
        "decoder looks at the question's states, not at the picture")
  _need(c.contrastive.weight == 0 or c.model.embed_dim > 0,
        "config.model.embed_dim is 0: for 'blip' it takes a number (BLIP 256)")
  _need(max(text.length, c.answering.length) <= med.positions,
        f"config.model.text.length {text.length} or config.answering.length {c.answering.length} is more than "
        f"config.model.med.positions {med.positions}")
  _need(max(med.cls, med.encode) < text.vocab,
        f"config.model.med.cls {med.cls} and encode {med.encode} have to be below config.model.text.vocab "
        f"{text.vocab}")
  _need(med.sharing == "none" or not text.unimodal_layers or not text.multimodal_layers or c.answering.weight > 0
        or text.unimodal_layers == text.multimodal_layers,
        f"config.model.med.sharing {med.sharing!r} needs as many unimodal_layers ({text.unimodal_layers}) as "
        f"multimodal_layers ({text.multimodal_layers}) in config.model.text; or 'none'")


def _data(c) -> None:
  answers = c.answering.weight > 0
  _need(c.answering.length > 2,
        f"config.answering.length {c.answering.length} holds BOS, EOS and no answer; it takes 3 or more")
  for name, source in c.data.sources.items():
    _need(bool(source.question_key) == answers, f"config.data.sources.{name}.question_key is {source.question_key!r} "
          f"and config.answering.weight {c.answering.weight}: batches of questions need both, others neither")
    _need(source.answer_weight > 0, f"config.data.sources.{name}.answer_weight {source.answer_weight}: it has to be "
          "above 0")
  for name, e in c.evals.items():
    _need(bool(e.source.question_key) == (e.kind == "vqa"), f"config.evals.{name}.source.question_key is "
          f"{e.source.question_key!r} and kind {e.kind!r}: a vqa evaluator needs questions, others take none")
  _need(c.data.batch % c.optim.accumulate == 0,
        f"config.data.batch {c.data.batch} is no multiple of config.optim.accumulate {c.optim.accumulate}")
  count, magnitude = c.data.rand_augment
  _need(count >= 0 and 0 <= magnitude <= 10,
        f"config.data.rand_augment is {c.data.rand_augment}; it takes a number of operations (0: none) and their "
        "magnitude, 0 to 10")
  _need(c.optim.eps > 0, f"config.optim.eps {c.optim.eps} has to be above 0")
  _need(0 <= c.data.max_skipped <= 1, f"config.data.max_skipped {c.data.max_skipped} is not a share")
  for name, e in c.evals.items():
    where = f"config.evals.{name}.rerank {e.rerank}"
    _need(e.rerank >= 0, f"{where} is less than 0, which is cosines alone")
    _need(not e.rerank or e.kind == "retrieval", f"{where} is for kind 'retrieval', not '{e.kind}'")
    _need(not e.rerank or c.matching.weight > 0,
          f"{where} needs a matching head (config.matching.weight above 0); 0 ranks by cosines alone")


def _durations(c) -> None:
  for where, value in (("steps", c.steps), ("log_every", c.log_every), ("optim.warmup", c.optim.warmup),
                       ("optim.epoch", c.optim.epoch), ("contrastive.soft_ramp", c.contrastive.soft_ramp),
                       ("checkpoint.every", c.checkpoint.every), ("checkpoint.keep_every", c.checkpoint.keep_every),
                       *((f"evals.{k}.every", e.every) for k, e in c.evals.items())):
    try:
      in_steps(value, c.data.batch, None if where == "steps" else 1)
    except ValueError as e:
      raise ValueError(f"config.{where}: {e}") from None
  if c.optim.schedule == "epochs":
    total = in_steps(c.steps, c.data.batch)
    warmup, epoch = (in_steps(duration, c.data.batch, total) for duration in (c.optim.warmup, c.optim.epoch))
    _need(epoch > 0, "config.optim.schedule 'epochs' needs config.optim.epoch, how long one is, e.g. '14e6 examples'")
    _need(0 < c.optim.lr_decay <= 1, f"config.optim.lr_decay {c.optim.lr_decay} is not in (0, 1]")
    _need(warmup <= epoch, f"config.optim.warmup {c.optim.warmup!r} is longer than config.optim.epoch "
          f"{c.optim.epoch!r} ({warmup} and {epoch} steps): schedule 'epochs' wants it within the first epoch")
