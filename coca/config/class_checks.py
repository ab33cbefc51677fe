"""Checks of the class head: its settings, what it is trained on and what measures it; part of `checks`."""

from coca.config.data import Eval, Source
from coca.config.need import need
from coca.config.settings import Config


def check_classification(c: Config, others: float) -> None:
  """Raises ValueError if `classification` holds what it may not; `others` is the largest weight of another loss."""
  settings = c.classification
  if not settings.weight:
    return
  need(
    c.model.kind in ("coca", "blip"),
    "config.classification.weight needs config.model.kind 'coca' or 'blip'; others have no class head",
  )
  need(
    settings.classes > 1,
    f"config.classification.classes is {settings.classes}; it takes the number of names of the training data's labels",
  )
  need(
    settings.pool != "class_token" or c.model.image.class_token,
    "config.classification.pool 'class_token' needs config.model.image.class_token; or say 'attention' or 'mean'",
  )
  need(
    settings.pool != "text" or c.model.text.multimodal_layers > 0 or c.model.kind == "blip",
    "config.classification.pool 'text' needs config.model.text.multimodal_layers above 0: it reads their outputs",
  )
  need(
    settings.images in (1, 2) or settings.pool == "attention",
    f"config.classification.images is {settings.images}; an example has 1 image, or 2 that a text is about, or with "
    "config.classification.pool 'attention' as many frames of a video",
  )
  need(
    settings.images == 1 or (settings.pool in ("text", "attention") and not others and not c.model.image.patch_dropout),
    f"config.classification.images {settings.images} needs config.classification.pool 'text' or, of videos, "
    "'attention', all other losses' weights to be 0 and config.model.image.patch_dropout 0; or set it to 1",
  )
  need(
    settings.frames or not settings.frame_positions,
    "config.classification.frame_positions tells frames of videos apart: it needs config.classification.images above 1 "
    "and config.classification.pool 'attention'",
  )
  alone = settings.pool != "text" and settings.images == 1 and not others
  need(
    alone or not (settings.mixup or settings.cutmix),
    f"config.classification.mixup {settings.mixup} and cutmix {settings.cutmix} need all other losses' weights to be "
    "0, and single images without texts: neither texts nor videos are mixed as images are; or set them to 0",
  )


def check_videos(c: Config, s: Source, where: str) -> None:
  """Raises ValueError if a training source has videos and the model reads images, or the other way round."""
  settings = c.classification
  need(
    not s.videos or (settings.weight and settings.pool == "attention" and not c.model.text.layers),
    f"{where}.videos: a class head alone is trained on videos (configs/finetune_video.py), which reads no text; it "
    "needs config.classification.weight above 0, its pool 'attention' and no layers in config.model.text",
  )
  need(
    s.videos or not settings.frames,
    f"{where} has images, and with config.classification.images {settings.images} examples are frames of videos: say "
    f"{where}.videos=True, or set it to 1",
  )


def check_class_evaluator(c: Config, e: Eval, where: str) -> None:
  """Raises ValueError if an evaluator of kind 'classification' makes no sense for the head."""
  need(
    e.kind != "classification" or c.classification.weight,
    f"{where}: a classification evaluator needs config.classification.weight above 0: the model has no class head; a "
    "zero_shot evaluator compares embeddings",
  )
  need(
    e.kind != "classification" or not c.classification.frames or e.source.videos,
    f"{where}.source: the class head reads frames of videos (config.classification.images {c.classification.images}); "
    "name a source of videos",
  )
  need(
    e.kind != "classification" or not c.classification.frame_positions or e.frames == c.classification.images,
    f"{where}.frames is {e.frames}; with config.classification.frame_positions it has to be "
    f"config.classification.images, {c.classification.images}",
  )
