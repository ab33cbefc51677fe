"""Model FLOPs of the training step, as MFU wants them: 2 for each multiply-add of a matrix product.

Norms, softmaxes and other elementwise work do not count, nor does what remat, gradient accumulation or the ring loss
compute again, nor the pooler's query projection (once a batch). Causal attention counts in full: the whole matrix is
computed and masked.
"""

from coca.config import Config
from coca.config.settings import frozen_parts
from coca.models.blip import SHARED


def flops_per_pair(config: Config) -> dict[str, float]:
  """Model FLOPs of the training step for one pair, by part, with the contrastive loss and 'total'.

  A product with a weight counts once forward, once for the weight's gradient unless its part is frozen, and once for
  the input's gradient unless nothing before it is trained; usually that is three times forward. The contrastive loss
  compares a pair with the whole batch, the softmax once in each direction, and each of an
  image's `config.contrastive.texts` is embedded and compared. The matching loss takes three texts and two images
  through the multimodal half for each pair; the draw of its negatives compares the pair with its group, forward only,
  and is counted with the head. A trained LayerNorm counts as something trained before what it feeds.
  Momentum encoders go forward only, the image and the text through them once, and what they embed has no gradient.
  """
  kinds = {"coca": _coca, "blip": _blip, "albef": _albef, "lemon": _lemon, "simvlm": _simvlm, "align": _align}
  kinds["vl_t5"] = _vl_t5
  flops = kinds[config.model.kind](config)
  return flops | {"total": sum(flops.values())}


def _coca(config: Config) -> dict[str, float]:
  model, image, text = config.model, config.model.image, config.model.text
  has_contrastive, has_captioning = config.contrastive.weight > 0, config.captioning.weight > 0
  has_matching = config.matching.weight > 0
  has_decoder = has_captioning or has_matching
  kind = model.poolers.kind
  has_generative = text.multimodal_layers > 0 and model.poolers.n_query > 0
  is_cascade = has_generative and kind == "cascade"
  frozen = frozen_parts(config)
  embed_dim = model.embed_dim or text.width
  is_trained = "image_encoder" not in frozen
  tokens, width = image.kept + image.class_token, image.width
  flops = {"image_encoder": 0.0 if config.data.embeddings else _image_encoder(image, tokens, is_trained)}
  encoded = (tokens, width, is_trained)

  def pool(part, n_query, out, tokens, width, has_grad, query_width=text.width):
    is_trained = part not in frozen
    flops[part] = (
      _product(2 * tokens * width * query_width, is_trained, has_grad or (is_trained and model.poolers.norm_inputs))
      + _product(n_query * (query_width * out + 2 * out * model.poolers.mlp), is_trained, has_grad or is_trained)
      + _attention(n_query * tokens * query_width, has_grad or is_trained)
    )
    return n_query, out, has_grad or is_trained

  def project(width, has_grad):
    is_trained = "image_projection" not in frozen
    flops["image_projection"] = _product(width * embed_dim, is_trained, has_grad)
    return has_grad or is_trained

  if config.classification.weight:
    has_grad = encoded[2]
    if config.classification.pool == "attention":
      _, _, has_grad = pool("class_pooler", 1, width, *encoded, width)
    flops["class_head"] = _product(width * config.classification.classes, "class_head" not in frozen, has_grad)

  image_tokens, image_has_grad = encoded, False
  if kind == "openclip":
    first, last = 0 if has_contrastive else 1, model.poolers.n_query if has_decoder else 1
    n, out, has_grad = pool("generative_pooler", last - first, text.width, *encoded)
    image_tokens = (n - has_contrastive, out, has_grad)
    image_has_grad = has_contrastive and project(text.width, has_grad)
  else:
    if kind == "class_token":
      image_has_grad = has_contrastive and project(width, encoded[2])
      image_tokens = encoded = (tokens - 1, width, encoded[2])
    if has_generative and (has_decoder or is_cascade):
      image_tokens = pool("generative_pooler", model.poolers.n_query, text.width, *encoded)
    if has_contrastive and kind != "class_token":
      _, _, image_has_grad = pool("contrastive_pooler", 1, embed_dim, *(image_tokens if is_cascade else encoded))

  is_trained = text.unimodal_layers > 0 and ("multimodal" if text.two_passes else "unimodal") not in frozen
  has_grad = is_trained or "embedding" not in frozen
  has_cls = has_contrastive and text.pool == "cls"
  if text.unimodal_layers and (has_contrastive or not text.two_passes):
    flops["unimodal"] = text.unimodal_layers * _layer(text, text.length + has_cls, is_trained, has_grad)
  if has_contrastive:
    flops["unimodal"] += _product(text.width * embed_dim, is_trained, has_grad)
    flops["unimodal"] *= config.contrastive.texts
    matrices = config.contrastive.texts * (2 if config.contrastive.loss == "softmax" else 1)
    flops["contrastive_loss"] = matrices * 2 * config.data.batch * embed_dim * (1 + image_has_grad + has_grad)

  if has_decoder:
    is_trained = "multimodal" not in frozen
    has_grad |= is_trained
    texts, images = (3, 2) if has_matching else (1, 1)
    crossing = text.multimodal_layers // text.cross_every
    flops["multimodal"] = crossing * _layer(
      text, text.length, is_trained, has_grad, *image_tokens, texts=texts, contexts=images
    )
    plain = _layer(text, text.length, is_trained, has_grad)
    flops["multimodal"] += (text.multimodal_layers - crossing) * texts * plain
  if has_matching:
    _, _, pooled_has_grad = pool("matching_pooler", 1, text.width, text.length, text.width, has_grad)
    flops["matching_pooler"] *= 3
    flops["matching_head"] = 3 * _product(text.width * 2, "matching_head" not in frozen, pooled_has_grad) + (
      2 * 2.0 * (config.matching.group or config.data.batch) * embed_dim
    )
  if has_captioning:
    is_trained = ("embedding" if text.tied_softmax else "softmax") not in frozen
    flops["softmax"] = _product(text.length * text.width * text.vocab, is_trained, has_grad)

  return flops


def _blip(config: Config) -> dict[str, float]:
  image, text = config.model.image, config.model.text
  has_contrastive, has_captioning, has_matching, has_answering = (
    x.weight > 0 for x in (config.contrastive, config.captioning, config.matching, config.answering)
  )
  frozen = frozen_parts(config)
  both = text.unimodal_layers and text.multimodal_layers and not has_answering
  shared = SHARED[config.model.med.sharing] if both else ()

  def is_trained(tower, part):
    is_shared = bool(shared) if part == "embedding" else part in shared
    return ("text_decoder" if is_shared else tower) not in frozen

  def bert(tower, length, context=None, texts=1, contexts=1):
    """The FLOPs of `texts` of a length over `contexts`, and True if the states have a gradient.

    `context`: tokens, width, and whether they have a gradient; None: no cross-attention.
    """
    d, layers = text.width, text.unimodal_layers if tower == "text_encoder" else text.multimodal_layers
    is_attention_trained, is_mlp_trained, is_cross_trained = (
      is_trained(tower, part) for part in ("self_attention", "mlp", "cross_attention")
    )
    has_grad = is_trained(tower, "embedding") or is_attention_trained or is_mlp_trained
    has_grad |= bool(context) and (is_cross_trained or context[2])
    flops = texts * (
      _product(length * 4 * d * d, is_attention_trained, has_grad)
      + _attention(length * length * d, has_grad)
      + _product(length * 2 * d * text.mlp, is_mlp_trained, has_grad)
    )
    if context:
      tokens, width, context_has_grad = context
      flops += texts * _product(length * 2 * d * d, is_cross_trained, has_grad)
      flops += texts * _attention(length * tokens * d, has_grad)
      flops += contexts * _product(tokens * 2 * width * d, is_cross_trained, context_has_grad)
    return layers * flops, has_grad

  image_has_grad = "image_encoder" not in frozen
  image_states = image.kept + 1, image.width, image_has_grad
  flops = {"image_encoder": _image_encoder(image, image_states[0], image_has_grad)}
  flops |= dict.fromkeys(("text_encoder", "text_decoder", "caption_head", "softmax"), 0.0)

  def write(length, context, texts=1):
    cost, has_grad = bert("text_decoder", length, context, texts)
    is_head_trained = "caption_head" not in frozen
    flops["text_decoder"] += cost
    flops["caption_head"] += texts * _product(length * text.width**2, is_head_trained, has_grad)
    flops["softmax"] += texts * _product(
      length * text.width * text.vocab, is_trained("text_decoder", "embedding"), has_grad or is_head_trained
    )

  if has_contrastive:
    flops["text_encoder"], text_has_grad = bert("text_encoder", text.length, texts=config.contrastive.texts)
    flops |= _compared(config, image_has_grad, text_has_grad)
  if has_captioning:
    write(text.length, image_states)
  if has_matching:
    cost, has_grad = bert("text_encoder", text.length, image_states, texts=3, contexts=2)
    flops["text_encoder"] += cost
    flops["matching_head"] = _matched(config, has_grad)
  if has_answering:
    cost, has_grad = bert("text_encoder", text.length, image_states)
    flops["text_encoder"] += cost
    write(config.answering.length, (text.length, text.width, has_grad), config.answering.answers)
  return {part: cost for part, cost in flops.items() if cost}


def _albef(config: Config) -> dict[str, float]:
  image, text = config.model.image, config.model.text
  has_contrastive, has_matching, has_masked = (
    x.weight > 0 for x in (config.contrastive, config.matching, config.masked)
  )
  parts = "image_encoder", "text_encoder", "fusion", "masked_head"
  is_image, is_text, is_fusion, is_head = (part not in frozen_parts(config) for part in parts)
  has_grad = is_image or is_text or is_fusion
  tokens, length, hidden = image.kept + 1, text.length, config.masked.most * text.width

  def read(is_trained):
    return text.unimodal_layers * _layer(text, length, is_trained, is_trained)

  def fuse(is_trained, has_grad, is_image, texts=1, contexts=1):
    context = tokens, image.width, is_image
    return text.multimodal_layers * _layer(text, length, is_trained, has_grad, *context, texts=texts, contexts=contexts)

  flops = {"image_encoder": _image_encoder(image, tokens, is_image)}
  flops["text_encoder"] = (config.contrastive.texts * has_contrastive + has_masked) * read(is_text)
  flops |= _compared(config, is_image, is_text) if has_contrastive else {}
  if has_matching:
    flops["fusion"] = fuse(is_fusion, has_grad, is_image, texts=3, contexts=2)
    flops["matching_head"] = _matched(config, has_grad)
  if has_masked:
    flops["fusion"] = flops.get("fusion", 0.0) + fuse(is_fusion, has_grad, is_image)
    flops["masked_head"] = _product(hidden * text.width, is_head, has_grad)
    flops["softmax"] = _product(hidden * text.vocab, is_text, has_grad or is_head)
    if config.contrastive.momentum:
      flops["momentum"] += read(False) + fuse(False, False, False) + 2.0 * hidden * (text.width + text.vocab)
  return flops


def _compared(config: Config, image_has_grad: bool, text_has_grad: bool) -> dict[str, float]:
  """The projections and the contrastive loss of BLIP and ALBEF, and the momentum encoders' embeddings for it."""
  image, text, settings, embed_dim = config.model.image, config.model.text, config.contrastive, config.model.embed_dim
  flops, with_grad, batch = {}, 0, config.data.batch
  for part, width, has_grad, times in (
    ("image_projection", image.width, image_has_grad, 1),
    ("text_projection", text.width, text_has_grad, settings.texts),
  ):
    is_trained = part not in frozen_parts(config)
    flops[part] = times * _product(width * embed_dim, is_trained, has_grad)
    with_grad += has_grad or is_trained
  if settings.momentum:
    # Similarities to the slow embeddings, which have no gradient, of the embeddings and of the slow ones themselves.
    flops["contrastive_loss"] = 2.0 * (batch + settings.queue) * embed_dim * (4 + with_grad)
    flops["momentum"] = _image_encoder(image, image.tokens + 1, False) + 2.0 * (image.width + text.width) * embed_dim
    flops["momentum"] += text.unimodal_layers * _layer(text, text.length, False, False)
  else:
    matrices = settings.texts * (2 if settings.loss == "softmax" else 1)
    flops["contrastive_loss"] = matrices * 2.0 * batch * embed_dim * (1 + with_grad)
  return flops


def _matched(config: Config, has_grad: bool) -> float:
  head = 3 * _product(config.model.text.width * 2, "matching_head" not in frozen_parts(config), has_grad)
  return head + 2 * 2.0 * (config.matching.group or config.data.batch) * config.model.embed_dim


def _lemon(config: Config) -> dict[str, float]:
  text, regions, d = config.model.text, config.model.regions, config.model.text.width
  is_projected, is_trained, is_head_trained = (
    part not in frozen_parts(config) for part in ("region_projection", "text_decoder", "caption_head")
  )
  tokens, hidden = text.length + regions.tags + regions.count, min(config.masked.most, text.length)
  has_grad = is_projected or is_trained
  return {
    "region_projection": _product(regions.count * (regions.width + 6) * d, is_projected, False),
    "text_decoder": text.multimodal_layers * _layer(text, tokens, is_trained, has_grad),
    "caption_head": _product(hidden * d * d, is_head_trained, has_grad),
    "softmax": _product(hidden * d * text.vocab, is_trained, has_grad or is_head_trained),
  }


def _vl_t5(config: Config) -> dict[str, float]:
  text, regions, d = config.model.text, config.model.regions, config.model.text.width
  parts = "region_projection", "words", "encoder", "decoder"
  is_projected, is_word, is_encoder, is_decoder = (part not in frozen_parts(config) for part in parts)
  tokens, has_grad = regions.tags + regions.count, is_projected or is_word
  context = tokens, d, has_grad or is_encoder
  return {
    "region_projection": _product(regions.count * (regions.width + 5) * d, is_projected, False),  # and the box's
    "encoder": text.unimodal_layers * _layer(text, tokens, is_encoder, has_grad),
    "decoder": text.multimodal_layers * _layer(text, text.length, is_decoder, has_grad, *context),
    "softmax": _product(text.length * d * text.vocab, is_word, has_grad or is_encoder or is_decoder),
  }


def _simvlm(config: Config) -> dict[str, float]:
  """The stem's convolutions by their outputs; all of the encoder's and the decoder's tokens, given or not."""
  model, image, text = config.model, config.model.image, config.model.text
  frozen = frozen_parts(config)
  is_stem, is_encoder, is_decoder = (part not in frozen for part in ("stem", "encoder", "decoder"))
  side, width, products = image.size // 4, model.stem.width, 0
  for i, depth in enumerate(model.stem.blocks):
    channels, before = model.stem.width * 2**i, side
    side = side if i == 0 else side // 2
    # The first bottleneck reads a larger map, and has a shortcut.
    products += before**2 * width * channels + side**2 * (13 * channels**2 + 4 * width * channels)
    products += (depth - 1) * side**2 * 17 * channels**2
    width = 4 * channels
  products += image.tokens * width * image.width
  tokens = image.tokens + text.length
  has_grad = is_stem or "embedding" not in frozen
  softmax = ("embedding" if text.tied_softmax else "softmax") not in frozen
  context = tokens, image.width, has_grad or is_encoder
  return {
    "stem": _product((image.size // 2) ** 2 * 49 * 3 * model.stem.width, is_stem, False)
    + _product(products, is_stem, is_stem),
    "encoder": image.layers * _layer(image, tokens, is_encoder, has_grad),
    "decoder": text.multimodal_layers * _layer(text, text.length, is_decoder, has_grad, *context),
    "softmax": _product(text.length * text.width * text.vocab, softmax, has_grad or is_encoder or is_decoder),
  }


def _align(config: Config) -> dict[str, float]:
  """EfficientNet counts with its convolutions and the two products of each block's squeeze-and-excite."""
  text, embed_dim, contrastive = config.model.text, config.model.embed_dim, config.contrastive
  side = -(-config.model.image.size // 2)
  stages = config.model.efficientnet.stages
  image = _product(side**2 * 27 * stages[0].n_in, True, False)
  for stage in stages:
    for block in range(stage.layers):
      n_in, stride = (stage.n_out, 1) if block else (stage.n_in, stage.stride)
      hidden, after = n_in * stage.expansion, -(-side // stride)
      before = side**2 * n_in * hidden if stage.expansion > 1 else 0
      convolved = after**2 * hidden * (stage.kernel**2 + stage.n_out)
      image += _product(before + convolved + 2 * hidden * max(1, n_in // 4), True, True)
      side = after
  is_trained = "text_encoder" not in frozen_parts(config)
  flops = {"image_encoder": image}
  flops["text_encoder"] = text.unimodal_layers * _layer(text, text.length, is_trained, is_trained)
  flops["text_projection"] = _product(text.width * embed_dim, "text_projection" not in frozen_parts(config), is_trained)
  flops |= {part: contrastive.texts * flops[part] for part in ("text_encoder", "text_projection")}
  matrices = contrastive.texts * (2 if contrastive.loss == "softmax" else 1)
  has_grad = is_trained or "text_projection" not in frozen_parts(config)
  return flops | {"contrastive_loss": matrices * 2.0 * config.data.batch * embed_dim * (2 + has_grad)}


def _image_encoder(image, tokens, is_trained):
  """All patches are embedded, and dropped after that; pixels want no gradient."""
  patches = _product(image.tokens * 3 * image.patch**2 * image.width, is_trained, False)
  return patches + image.layers * _layer(image, tokens, is_trained, is_trained)


def _layer(
  tower, tokens, is_trained, has_grad, context=0, context_width=0, context_has_grad=False, *, texts=1, contexts=1
):
  """A transformer layer over `tokens`, with cross-attention to `context` tokens if there are any.

  `is_trained`: its weights want gradients; `has_grad`: its input does; `texts` of these tokens look at `contexts`.
  """
  d = tower.width
  has_grad |= context_has_grad
  feedforwards = tower.feedforwards if context else 1
  flops = _product(tokens * (4 * d * d + feedforwards * 2 * d * tower.mlp), is_trained, has_grad)
  flops += _attention(tokens * tokens * d, has_grad)
  if context:
    flops += _product(2 * tokens * d * d, is_trained, has_grad) + _attention(tokens * context * d, has_grad)
    context_has_grad |= is_trained and tower.norm_context
    flops = texts * flops + contexts * _product(2 * context * context_width * d, is_trained, context_has_grad)
  return flops


def _product(multiply_adds, is_trained, has_grad):
  return 2.0 * multiply_adds * (1 + is_trained + has_grad)


def _attention(multiply_adds, has_grad):
  """Query times key, and weights times value."""
  return 2 * 2.0 * multiply_adds * (1 + 2 * has_grad)
