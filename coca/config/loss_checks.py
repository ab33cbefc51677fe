"""Checks of which losses go with which model, and with each other."""

from coca.config.class_checks import check_classification
from coca.config.need import need
from coca.config.settings import Config


def check_losses(c: Config) -> None:
  """Raises ValueError, which names the setting, if a loss lacks what it needs, or two do not go together."""
  text, is_blip, has_matching = c.model.text, c.model.kind == "blip", c.matching.weight > 0
  has_answering = c.answering.weight > 0
  others = max(x.weight for x in (c.contrastive, c.captioning, c.answering, c.masked, c.self_critical, c.dialog))
  need(c.dialog.weight == 0 or is_blip, "config.dialog.weight needs config.model.kind 'blip'; or set it to 0")
  need(max(others, c.classification.weight) > 0, "all loss weights are 0: nothing to train")
  check_classification(c, others)
  _self_critical(c)
  need(
    not c.contrastive.heads or text.unimodal_layers > 0,
    "config.contrastive.weight needs config.model.text.unimodal_layers above 0; or set the weight to 0 (and "
    "config.contrastive.keep to False)",
  )
  need(
    c.captioning.parallel == 0
    or (not is_blip and c.captioning.weight > 0 and text.unimodal_layers == 0 and not c.has_text_head),
    "config.captioning.parallel needs a captioner alone, of kind 'coca': config.captioning.weight above 0, "
    "config.model.text.unimodal_layers 0 and no class head that reads the text, which it hides",
  )
  need(
    c.captioning.weight == 0 or text.multimodal_layers > 0,
    "config.captioning.weight needs config.model.text.multimodal_layers above 0; or set the weight to 0",
  )
  need(
    c.model.kind != "simvlm" or not has_matching,
    "config.matching.weight needs embeddings, and config.model.kind 'simvlm' makes none; set the weight to 0",
  )
  need(
    is_blip or not has_matching or text.multimodal_layers > 0,
    "config.matching.weight needs config.model.text.multimodal_layers above 0: the head reads the multimodal "
    "decoder's outputs",
  )
  need(
    not has_matching or c.contrastive.weight > 0,
    "config.matching.weight needs config.contrastive.weight above 0: negatives are drawn by the contrastive "
    "similarities",
  )
  need(
    not has_matching or c.optim.accumulate == 1,
    f"config.matching.weight needs config.optim.accumulate 1, not {c.optim.accumulate}: a micro-batch does not "
    "hold the negatives that are drawn from the whole batch; use more devices, or config.model.remat, instead",
  )
  need(
    c.answering.length > 2,
    f"config.answering.length {c.answering.length} holds BOS, EOS and no answer; it takes 3 or more",
  )
  need(is_blip or not has_answering, "config.answering.weight needs config.model.kind 'blip'")
  need(
    c.masked.weight == 0 or c.model.kind in ("albef", "lemon"),
    "config.masked.weight needs config.model.kind 'albef' or 'lemon'; or set the weight to 0",
  )
  if c.contrastive.momentum:
    need(
      c.model.kind != "coca"
      and c.contrastive.loss == "softmax"
      and c.contrastive.weight > 0
      and c.optim.accumulate == 1,
      "config.contrastive.momentum needs config.model.kind 'blip' or 'albef', config.contrastive.loss 'softmax' with a "
      "weight above 0, and config.optim.accumulate 1",
    )
  need(
    c.contrastive.label_smoothing == 0 or (c.contrastive.loss == "softmax" and not c.contrastive.momentum),
    "config.contrastive.label_smoothing needs config.contrastive.loss 'softmax' and config.contrastive.momentum 0",
  )
  need(
    c.contrastive.texts == 1 or (c.contrastive.weight > 0 and not c.contrastive.momentum and not has_answering),
    f"config.contrastive.texts {c.contrastive.texts} needs config.contrastive.weight above 0, "
    "config.contrastive.momentum 0, since the queue holds one text of an image, and config.answering.weight 0, since a "
    "question is one text; or set it to 1",
  )
  need(
    c.contrastive.momentum or not c.matching.slow_keys,
    "config.matching.slow_keys needs config.contrastive.momentum above 0",
  )
  group = c.matching.group
  need(
    group == 0 or (group > 1 and c.data.batch % group == 0),
    f"config.matching.group {group} has to be above 1 and divide config.data.batch {c.data.batch}; 0 is the whole "
    "batch",
  )


def _self_critical(c: Config) -> None:
  settings = c.self_critical
  if not settings.weight:
    return
  need(
    c.model.kind in ("coca", "blip") and c.model.text.multimodal_layers > 0 and not c.answering.weight,
    f"config.self_critical.weight needs a captioner: config.model.kind 'coca' or 'blip', not {c.model.kind!r}, "
    "config.model.text.multimodal_layers above 0 and config.answering.weight 0; or set the weight to 0",
  )
  need(
    settings.baseline == "greedy" or settings.samples > 1,
    "config.self_critical.baseline 'mean' is that of the other samples, and config.self_critical.samples is 1; ask for "
    "more, or say 'greedy'",
  )
  need(
    not c.data.embeddings and not c.has_text_head and c.classification.images == 1,
    "config.self_critical.weight draws captions of images: set config.data.embeddings to '', "
    "config.classification.images to 1, and no config.classification.weight with pool 'text' beside it",
  )
