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
  compares a pair with the whole batch, the softmax once in each direction. The matching loss takes three texts and two
  pictures through the multimodal half for each pair; the draw of its negatives compares the pair with its group,
  forward only, and is counted with the head. A trained LayerNorm counts as something trained before what it feeds.
  Momentum encoders go forward only, the image and the text through them once, and what they embed has no gradient.
  """
  flops = (_blip if config.model.kind == "blip" else _coca)(config)
  return flops | {"total": sum(flops.values())}


def _coca(config: Config) -> dict[str, float]:
  model, image, text = config.model, config.model.image, config.model.text
  contrasts, captions = config.contrastive.weight > 0, config.captioning.weight > 0
  matches = config.matching.weight > 0
  decodes = captions or matches
  kind = model.poolers.kind
  pools = text.multimodal_layers > 0 and model.poolers.n_query > 0
  cascades = pools and kind == "cascade"
  frozen = frozen_parts(config)
  embed_dim = model.embed_dim or text.width
  learns = "image_encoder" not in frozen
  tokens, width = image.kept + image.class_token, image.width
  flops = {"image_encoder": _image_encoder(image, tokens, learns)}
  encoded = (tokens, width, learns)

  def pool(part, n_query, out, tokens, width, live):
    learns = part not in frozen
    flops[part] = (
      _product(2 * tokens * width * text.width, learns, live or (learns and model.poolers.norm_inputs))
      + _product(n_query * (text.width * out + 2 * out * model.poolers.mlp), learns, live or learns)
      + _attention(n_query * tokens * text.width, live or learns)
    )
    return n_query, out, live or learns

  def project(width, live):
    learns = "image_projection" not in frozen
    flops["image_projection"] = _product(width * embed_dim, learns, live)
    return live or learns

  image_tokens = encoded
  if kind == "openclip":
    first, last = 0 if contrasts else 1, model.poolers.n_query if decodes else 1
    n, out, live = pool("generative_pooler", last - first, text.width, *encoded)
    image_tokens = (n - contrasts, out, live)
    image_live = project(text.width, live) if contrasts else None
  else:
    if kind == "class_token":
      image_live = project(width, encoded[2]) if contrasts else None
      image_tokens = encoded = (tokens - 1, width, encoded[2])
    if pools and (decodes or cascades):
      image_tokens = pool("generative_pooler", model.poolers.n_query, text.width, *encoded)
    if contrasts and kind != "class_token":
      _, _, image_live = pool("contrastive_pooler", 1, embed_dim, *(image_tokens if cascades else encoded))

  learns = text.unimodal_layers > 0 and "unimodal" not in frozen
  live = learns or "embedding" not in frozen
  has_cls = contrasts and text.pool == "cls"
  if text.unimodal_layers:
    flops["unimodal"] = text.unimodal_layers * _layer(text, text.length + has_cls, learns, live)
  if contrasts:
    flops["unimodal"] += _product(text.width * embed_dim, learns, live)
    matrices = 2 if config.contrastive.loss == "softmax" else 1
    flops["contrastive_loss"] = matrices * 2 * config.data.batch * embed_dim * (1 + image_live + live)

  if decodes:
    learns = "multimodal" not in frozen
    live |= learns
    texts, images = (3, 2) if matches else (1, 1)
    flops["multimodal"] = text.multimodal_layers * _layer(
      text, text.length, learns, live, *image_tokens, texts=texts, contexts=images
    )
  if matches:
    _, _, pooled_live = pool("matching_pooler", 1, text.width, text.length, text.width, live)
    flops["matching_pooler"] *= 3
    flops["matching_head"] = 3 * _product(text.width * 2, "matching_head" not in frozen, pooled_live) + (
      2 * 2.0 * (config.matching.group or config.data.batch) * embed_dim
    )
  if captions:
    learns = ("embedding" if text.tied_softmax else "softmax") not in frozen
    flops["softmax"] = _product(text.length * text.width * text.vocab, learns, live)

  return flops


def _blip(config: Config) -> dict[str, float]:
  image, text, embed_dim, batch = config.model.image, config.model.text, config.model.embed_dim, config.data.batch
  contrasts, captions, matches, answers = (
    x.weight > 0 for x in (config.contrastive, config.captioning, config.matching, config.answering)
  )
  frozen = frozen_parts(config)
  both = text.unimodal_layers and text.multimodal_layers and not answers
  shared = SHARED[config.model.med.sharing] if both else ()

  def learns(tower, part):
    is_shared = bool(shared) if part == "embedding" else part in shared
    return ("text_decoder" if is_shared else tower) not in frozen

  def bert(tower, length, context=None, texts=1, contexts=1):
    """The FLOPs of `texts` of a length over so many `contexts`, and whether the states have a gradient.

    `context`: tokens, width, and whether they have a gradient; None: no cross-attention.
    """
    d, layers = text.width, text.unimodal_layers if tower == "text_encoder" else text.multimodal_layers
    attends, feeds, looks = (learns(tower, part) for part in ("self_attention", "mlp", "cross_attention"))
    live = learns(tower, "embedding") or attends or feeds or (bool(context) and (looks or context[2]))
    flops = texts * (
      _product(length * 4 * d * d, attends, live) + _attention(length * length * d, live)
      + _product(length * 2 * d * text.mlp, feeds, live)
    )
    if context:
      tokens, width, context_live = context
      flops += texts * (_product(length * 2 * d * d, looks, live) + _attention(length * tokens * d, live))
      flops += contexts * _product(tokens * 2 * width * d, looks, context_live)
    return layers * flops, live

  image_live = "image_encoder" not in frozen
  pictures = image.kept + 1, image.width, image_live
  flops = {"image_encoder": _image_encoder(image, pictures[0], image_live)}
  flops |= dict.fromkeys(("text_encoder", "text_decoder", "caption_head", "softmax"), 0.0)

  def project(part, width, live):
    learns = part not in frozen
    flops[part] = _product(width * embed_dim, learns, live)
    return live or learns

  def write(length, context, texts=1):
    cost, live = bert("text_decoder", length, context, texts)
    learns_head = "caption_head" not in frozen
    flops["text_decoder"] += cost
    flops["caption_head"] += texts * _product(length * text.width**2, learns_head, live)
    flops["softmax"] += texts * _product(
      length * text.width * text.vocab, learns("text_decoder", "embedding"), live or learns_head
    )

  if contrasts:
    flops["text_encoder"], text_live = bert("text_encoder", text.length)
    lives = project("image_projection", image.width, image_live) + project("text_projection", text.width, text_live)
    if config.contrastive.momentum:
      # Similarities to the slow embeddings, which have no gradient, of the embeddings and of the slow ones themselves.
      flops["contrastive_loss"] = 2.0 * (batch + config.contrastive.queue) * embed_dim * (4 + lives)
      flops["momentum"] = _image_encoder(image, image.tokens + 1, False) + 2.0 * (image.width + text.width) * embed_dim
      flops["momentum"] += text.unimodal_layers * _layer(text, text.length, False, False)
    else:
      matrices = 2 if config.contrastive.loss == "softmax" else 1
      flops["contrastive_loss"] = matrices * 2.0 * batch * embed_dim * (1 + lives)
  if captions:
    write(text.length, pictures)
  if matches:
    cost, live = bert("text_encoder", text.length, pictures, texts=3, contexts=2)
    flops["text_encoder"] += cost
    flops["matching_head"] = 3 * _product(text.width * 2, "matching_head" not in frozen, live) + (
      2 * 2.0 * (config.matching.group or batch) * embed_dim
    )
  if answers:
    cost, live = bert("text_encoder", text.length, pictures)
    flops["text_encoder"] += cost
    write(config.answering.length, (text.length, text.width, live), config.answering.answers)
  return {part: cost for part, cost in flops.items() if cost}


def _image_encoder(image, tokens, learns):
  """All patches are embedded, and dropped after that; pixels want no gradient."""
  patches = _product(image.tokens * 3 * image.patch**2 * image.width, learns, False)
  return patches + image.layers * _layer(image, tokens, learns, learns)


def _layer(tower, tokens, learns, live, context=0, context_width=0, context_live=False, *, texts=1, contexts=1):
  """A transformer layer over `tokens`, with cross-attention to `context` tokens if there are any.

  `learns`: its weights want gradients; `live`: its input does; `texts` of so many tokens look at `contexts`.
  """
  d = tower.width
  live |= context_live
  feedforwards = tower.feedforwards if context else 1
  flops = _product(tokens * (4 * d * d + feedforwards * 2 * d * tower.mlp), learns, live)
  flops += _attention(tokens * tokens * d, live)
  if context:
    flops += _product(2 * tokens * d * d, learns, live) + _attention(tokens * context * d, live)
    context_live |= learns and tower.norm_context
    flops = texts * flops + contexts * _product(2 * context * context_width * d, learns, context_live)
  return flops


def _product(multiply_adds, learns, live):
  return 2.0 * multiply_adds * (1 + learns + live)


def _attention(multiply_adds, live):
  """Query times key, and weights times value."""
  return 2 * 2.0 * multiply_adds * (1 + 2 * live)
