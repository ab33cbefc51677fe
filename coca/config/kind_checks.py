"""Checks of what a kind of model asks for; a CoCa's are those of the towers and losses (coca/config/checks.py)."""

from coca.config.need import need
from coca.config.settings import Config
from coca.config.special import SENTINELS


def check_kind(c: Config) -> None:
  """Raises ValueError, which names the setting, if one does not go with `config.model.kind`."""
  own = {"blip": _blip, "albef": _albef, "align": _align, "lemon": _lemon, "simvlm": _simvlm}
  if c.model.kind in own:
    own[c.model.kind](c)
  if c.model.poses_tasks:
    _posed(c)
  need(
    not c.model.reads_regions or not c.model.image.patch_dropout,
    f"config.model.image.patch_dropout is {c.model.image.patch_dropout}; config.model.kind {c.model.kind!r} reads "
    "regions, set it to 0",
  )
  if c.model.is_bert:
    _bert(c)


def _bert(c: Config) -> None:
  """Common to 'blip', 'albef', 'align' and 'lemon'."""
  kind, text, med = c.model.kind, c.model.text, c.model.med
  tags = c.model.regions.tags if c.model.reads_regions else 0
  need(
    kind in ("align", "lemon") or c.model.image.class_token,
    f"config.model.kind {kind!r} needs config.model.image.class_token",
  )
  need(
    not c.contrastive.heads or c.model.embed_dim > 0,
    f"config.model.embed_dim is 0: for {kind!r} it takes a number (BLIP and ALBEF 256)",
  )
  need(
    max(text.length + tags, c.answering.length) <= med.positions,
    f"config.model.text.length {text.length} + {tags} tags, or config.answering.length {c.answering.length}, is more "
    f"than config.model.med.positions {med.positions}",
  )
  for name in {"lemon": ("cls", "mask"), "albef": ("cls", "encode", "mask")}.get(kind, ("cls", "encode")):
    number = getattr(med, name)
    need(
      number < text.vocab,
      f"config.model.med.{name} {number} has to be below config.model.text.vocab {text.vocab}",
    )


def _lemon(c: Config) -> None:
  text = c.model.text
  kinds = "contrastive", "captioning", "matching", "answering", "classification"
  others = [name for name in kinds if getattr(c, name).weight]
  need(
    c.masked.weight > 0 and not others and not c.contrastive.keep,
    f"config.model.kind 'lemon' is trained by hidden words alone: set config.masked.weight above 0, and 0 for "
    f"{', '.join(f'config.{name}.weight' for name in others) or 'config.contrastive.keep'}",
  )
  need(
    text.multimodal_layers > 0 and text.unimodal_layers == 0,
    "config.model.kind 'lemon' has one stack: config.model.text.multimodal_layers above 0 and unimodal_layers 0",
  )


def _posed(c: Config) -> None:
  """Common to 'vl_t5' and 'vl_bart'."""
  kind, text, regions, positions = c.model.kind, c.model.text, c.model.regions, c.model.med.positions
  need(
    c.captioning.weight > 0 < min(text.unimodal_layers, text.multimodal_layers) and not c.contrastive.heads,
    f"config.model.kind {kind!r} is trained by what it writes, with layers of an encoder and a decoder: set "
    "config.captioning.weight, config.model.text.unimodal_layers and multimodal_layers above 0, and "
    "config.contrastive.weight to 0",
  )
  need(
    regions.tags > 0 and regions.count <= SENTINELS // 2 and c.model.pieces > 0,
    f"config.model.kind {kind!r} needs config.model.regions.tags above 0, regions.count {regions.count} no more than "
    f"{SENTINELS // 2}, and config.model.text.vocab {text.vocab} above {SENTINELS}: the last words stand for regions",
  )
  need(
    kind == "vl_t5" or max(text.length, regions.tags, c.answering.length) <= positions,
    f"config.model.text.length {text.length}, regions.tags {regions.tags} or config.answering.length "
    f"{c.answering.length} is more than config.model.med.positions {positions}",
  )


def _simvlm(c: Config) -> None:
  image, text = c.model.image, c.model.text
  need(
    not c.captioning.parallel and not c.captioning.prompt_tokens,
    "config.captioning.parallel or prompt_tokens is above 0; set them to 0 with config.model.kind 'simvlm', which "
    "draws the words that are given",
  )
  need(
    text.unimodal_layers == 0 < text.multimodal_layers and image.layers > 0 and image.width == text.width,
    "config.model.kind 'simvlm' needs config.model.text.unimodal_layers 0, multimodal_layers and "
    f"config.model.image.layers above 0, and one width for both, not {image.width} and {text.width}",
  )
  need(
    image.patch == 16 and not image.class_token and not image.patch_dropout and not image.rope,
    f"config.model.image.patch {image.patch}, class_token, patch_dropout or rope: config.model.kind 'simvlm' has a "
    "stem whose tokens are of 16 pixels, and none of the others",
  )
  need(not c.stages, "config.stages needs another config.model.kind than 'simvlm', whose positions are of one size")
  need(min(c.model.stem.blocks) > 0, f"config.model.stem.blocks {c.model.stem.blocks}: each takes 1 or more")
  need(
    c.model.stem.width > 0 and c.model.stem.width % (2 if c.model.stem.width <= 32 else 16) == 0,
    f"config.model.stem.width {c.model.stem.width} takes an even number up to 32, or a multiple of 16: a norm has two "
    "channels a group at least",
  )


def _albef(c: Config) -> None:
  text = c.model.text
  need(
    c.captioning.weight == 0,
    "config.captioning.weight needs a decoder, and config.model.kind 'albef' has none; set the weight to 0",
  )
  need(
    text.unimodal_layers > 0 and (text.multimodal_layers > 0 or not c.masked.weight),
    "config.model.kind 'albef' needs config.model.text.unimodal_layers above 0, and multimodal_layers above 0 with "
    "config.masked.weight",
  )
  need(
    c.masked.most <= text.length or not c.masked.weight,
    f"config.masked.most {c.masked.most} is more than config.model.text.length {text.length}",
  )


def _blip(c: Config) -> None:
  text, med = c.model.text, c.model.med
  needs_encoder = max(x.weight for x in (c.contrastive, c.matching, c.answering, c.classification, c.dialog)) > 0
  need(
    text.unimodal_layers > 0 or not needs_encoder,
    "config.model.text.unimodal_layers is 0: a text encoder is needed by the contrastive, the matching and the "
    "answering loss, by the class head and by dialogs; set their weights to 0, or give it layers",
  )
  others = max(
    x.weight for x in (c.contrastive, c.captioning, c.matching, c.answering, c.classification, c.self_critical)
  )
  need(
    not c.dialog.weight or (not others and text.width == c.model.image.width and c.dialog.length <= med.positions),
    f"config.dialog.weight needs the weights of all other losses to be 0, one width of image and text, which are one "
    f"memory (config.model.image.width {c.model.image.width} and text.width {text.width}), and config.dialog.length "
    f"{c.dialog.length} no more than config.model.med.positions {med.positions}",
  )
  need(
    not c.dialog.weight or (c.dialog.length > 3 and c.dialog.negatives > 0),
    f"config.dialog.length {c.dialog.length} takes 4 or more, and negatives {c.dialog.negatives} 1 or more",
  )
  need(
    not c.classification.weight or (c.classification.images == 2 and text.multimodal_layers == 0),
    "config.classification.weight of config.model.kind 'blip' is for texts about two images: set "
    "config.classification.images to 2, pool to 'text' and config.model.text.multimodal_layers to 0",
  )
  need(
    c.answering.weight == 0 or (text.multimodal_layers > 0 and not c.captioning.weight),
    "config.answering.weight needs config.model.text.multimodal_layers above 0 and config.captioning.weight 0: the "
    "decoder looks at the question's states, not at the image",
  )
  need(
    med.sharing == "none"
    or not text.unimodal_layers
    or not text.multimodal_layers
    or c.answering.weight > 0
    or text.unimodal_layers == text.multimodal_layers,
    f"config.model.med.sharing {med.sharing!r} needs as many unimodal_layers ({text.unimodal_layers}) as "
    f"multimodal_layers ({text.multimodal_layers}) in config.model.text; or 'none'",
  )


def _align(c: Config) -> None:
  width = c.model.efficientnet.stages[-1].n_out
  need(
    c.contrastive.weight > 0
    and not (c.contrastive.momentum or c.model.text.multimodal_layers or c.captioning.weight or c.matching.weight),
    "config.model.kind 'align' is trained by the contrastive loss alone: set config.contrastive.weight above 0, and "
    "config.contrastive.momentum, config.captioning.weight, config.matching.weight and "
    "config.model.text.multimodal_layers to 0",
  )
  need(
    c.model.embed_dim == width,
    f"config.model.embed_dim is {c.model.embed_dim}; of kind 'align' it is the width of the image tower, {width}",
  )
  need(
    c.model.image.patch_dropout == 0,
    "config.model.image.patch_dropout has to be 0 for config.model.kind 'align', which has no patches",
  )
  need(
    c.optim.accumulate == 1,
    f"config.optim.accumulate has to be 1 for config.model.kind 'align', not {c.optim.accumulate}: its batch norms go "
    "by the whole batch; use more devices, or config.model.remat, instead",
  )
  need(
    c.optim.layer_decay == 1,
    "config.optim.layer_decay has to be 1 for config.model.kind 'align', whose image tower's layers are no stack; "
    "take config.optim.lr_scale",
  )
  need(
    not c.optim.lora.rank,
    "config.optim.lora.rank has to be 0 for config.model.kind 'align', whose image tower has convolutions",
  )
  need(
    c.optim.lr_scale.get("image_encoder") != 0,
    "config.optim.lr_scale freezes the 'image_encoder' of config.model.kind 'align', whose batch norms would go by "
    "each batch all the same; take a rate above 0",
  )
