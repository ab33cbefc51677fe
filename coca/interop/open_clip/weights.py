"""open_clip's state_dict as our parameters, and back. The projections of self-attention are fused there."""

from collections.abc import Iterator, Mapping

import numpy as np

from coca.config import Config, Model
from coca.interop import tensors
from coca.interop.tensors import Entry, linear, norm

SELF = {"ln_1": "norm_self", "attn": "self_attention", "ln_2": "norm_mlp", "mlp": "mlp"}
SELF_BEFORE_CROSS = SELF | {"ln_2": "norm_self_mlp", "mlp": "self_mlp"}
CROSS = {"ln_1": "norm_cross", "ln_1_kv": "norm_context", "attn": "cross_attention", "ln_2": "norm_mlp", "mlp": "mlp"}

TIMM = {"norm1": "norm_self", "attn": "self_attention", "norm2": "norm_mlp", "mlp": "mlp"}  # of its ViTs
TIMM_START = "visual.trunk."

OTHERS = {  # starts of names in layouts that are not read here
  "visual.layer1.": "a ResNet image tower",
  "text.transformer.embeddings.": "a Hugging Face text tower (such as RoBERTa's)",
  "text.transformer.encoder.": "a Hugging Face text tower",
  "attn_pool_contrastive.": "CoCa2",
  "visual.attn_pool_contrastive.": "CoCa2 (cascade or parallel poolers)",
  "attn_pool.": "CoCa2",
  "map_viz2txt_kv": "MaMMUT",
  "text.cross_attn.": "MaMMUT",
  "text_model.": "CLIP in the layout of the transformers library; take open_clip's file of these weights",
}
LEFT_OUT = (
  "attn_mask",
  "text.attn_mask",
  "text_decoder.attn_mask",  # computed; old files have them
  "input_resolution",
  "context_length",
  "vocab_size",
)  # of OpenAI's archives


def to_params(state_dict: Mapping[str, np.ndarray], config: Config) -> dict:
  """Our parameters, fp32.

  Args:
    state_dict: as torch saves it; names may begin with 'module.', the projections of attention may be separate.
    config: of `coca.interop.open_clip.settings.to_config`.

  Raises:
    ValueError: names that are unknown or missing, or shapes that differ (they are listed), or values that are not
      finite.
  """
  found = _tidy(state_dict, config)
  if _is_timm(config.model) and not config.model.text.projection_bias:
    # `proj_type` 'none': the text width is the embedding's. A square of ones on the diagonal does as much.
    found.setdefault("text.text_projection", np.eye(config.model.text.width, dtype=np.float32))
  return tensors.to_params(found, config, _entries(config))


def to_state_dict(params, config: Config) -> dict[str, np.ndarray]:
  """open_clip's tensors of our parameters, fp32, in the order and with the names of its own files."""
  return tensors.to_state_dict(params, _entries(config))


# --- Names ---


def _entries(config: Config) -> Iterator[Entry]:
  model, has_decoder = config.model, config.model.text.multimodal_layers > 0
  is_timm = _is_timm(model)
  text = "text." if has_decoder or is_timm else ""

  yield Entry("logit_scale", ("temperature/log_scale",), None, "same")
  if config.contrastive.loss != "softmax":
    yield Entry("logit_bias", ("temperature/logit_bias",), None, "same")

  yield from _timm_tower(model) if is_timm else _image_tower(model)
  if has_decoder:
    yield Entry("text.cls_emb", ("unimodal/cls",), None, "same")
  yield Entry(f"{text}positional_embedding", ("embedding/positions",), None, "same")
  yield Entry(f"{text}token_embedding.weight", ("embedding/tokens",), None, "same")
  yield from _blocks(f"{text}transformer.resblocks", "unimodal", model.text.unimodal_layers, SELF)
  yield from norm(f"{text}ln_final", "unimodal/norm")
  if model.text.projection_bias:
    yield Entry(f"{text}text_projection.weight", ("unimodal/projection/kernel",), None, "transposed")
  else:
    yield Entry(f"{text}text_projection", ("unimodal/projection/kernel",), None, "same")
  if model.text.projection_bias:
    yield Entry(f"{text}text_projection.bias", ("unimodal/projection/bias",), None, "same")

  if has_decoder:
    layers = model.text.multimodal_layers
    yield from _blocks("text_decoder.resblocks", "multimodal", layers, SELF_BEFORE_CROSS)
    yield from _blocks("text_decoder.cross_attn", "multimodal", layers, CROSS)
    yield from norm("text_decoder.ln_final", "multimodal/norm")
    yield Entry("text_decoder.text_projection", ("softmax/kernel",), None, "same")


def _image_tower(model: Model) -> Iterator[Entry]:
  yield Entry("visual.class_embedding", ("image_encoder/class_token",), None, "same")
  yield Entry("visual.positional_embedding", ("image_encoder/positions",), None, "same")
  yield Entry("visual.conv1.weight", ("image_encoder/patches/kernel",), None, "conv")
  if model.image.norm_pre:
    yield from norm("visual.ln_pre", "image_encoder/norm_pre")
  yield from _blocks("visual.transformer.resblocks", "image_encoder", model.image.layers, SELF)
  if model.poolers.kind == "openclip":
    yield Entry("visual.attn_pool.query", ("generative_pooler/queries",), None, "same")
    # torch fuses the projections where queries and tokens have the same width.
    fused = model.image.width == model.text.width
    yield from _attention("visual.attn_pool.attn", "generative_pooler/attention", None, fused)
    yield from norm("visual.attn_pool.ln_q", "generative_pooler/norm_queries")
    yield from norm("visual.attn_pool.ln_k", "generative_pooler/norm_tokens")
    yield from norm("visual.ln_post", "generative_pooler/norm")
  else:
    yield from norm("visual.ln_post", "image_encoder/norm" if model.image.norm_post else "mean_norm")
  yield Entry("visual.proj", ("image_projection/kernel",), None, "same")


def _is_timm(model: Model) -> bool:
  """True if the image tower is timm's, and the text tower therefore a part of its own."""
  return model.poolers.kind == "parallel" or model.poolers.projection_bias


def _timm_tower(model: Model) -> Iterator[Entry]:
  image, has_pooler = model.image, model.poolers.kind == "parallel"
  if image.class_token:
    yield Entry(f"{TIMM_START}cls_token", ("image_encoder/class_token",), None, "leading")
  yield Entry(f"{TIMM_START}pos_embed", ("image_encoder/positions",), None, "leading")
  yield Entry(f"{TIMM_START}patch_embed.proj.weight", ("image_encoder/patches/kernel",), None, "conv")
  if image.patch_bias:
    yield Entry(f"{TIMM_START}patch_embed.proj.bias", ("image_encoder/patches/bias",), None, "same")
  if image.norm_pre:
    yield from norm(f"{TIMM_START}norm_pre", "image_encoder/norm_pre")
  is_eva = image.patch_bias and not has_pooler  # of the towers in timm.py
  yield from _blocks(f"{TIMM_START}blocks", "image_encoder", image.layers, TIMM, key_bias=not is_eva)
  yield from norm(f"{TIMM_START}norm", "image_encoder/norm")
  if model.poolers.projection_bias:
    yield from linear(f"{TIMM_START}head", "image_projection")
  if has_pooler:
    yield from _timm_pooler()


def _timm_pooler() -> Iterator[Entry]:
  theirs, ours = f"{TIMM_START}attn_pool", "contrastive_pooler"
  yield Entry(f"{theirs}.latent", (f"{ours}/queries",), None, "leading")
  yield from linear(f"{theirs}.q", f"{ours}/attention/query")
  for kind, part, how in (("weight", "kernel", "transposed"), ("bias", "bias", "same")):
    yield Entry(f"{theirs}.kv.{kind}", tuple(f"{ours}/attention/{x}/{part}" for x in ("key", "value")), None, how)
  yield from linear(f"{theirs}.proj", f"{ours}/attention/out")
  yield from norm(f"{theirs}.norm", f"{ours}/norm")
  yield from linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
  yield from linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")


def _blocks(theirs: str, tower: str, layers: int, names: dict[str, str], key_bias: bool = True) -> Iterator[Entry]:
  """Without `key_bias`, ours is 0, and what it learns is lost on the way back: it adds the same to all of a query's
  logits.
  """
  for i in range(layers):
    for their_name, our_name in names.items():
      key, path = f"{theirs}.{i}.{their_name}", f"{tower}/stack/layers/{our_name}"
      if their_name == "attn" and names is TIMM:
        parts = tuple(f"{path}/{part}" for part in ("query", "key", "value"))
        yield Entry(f"{key}.qkv.weight", tuple(f"{part}/kernel" for part in parts), i, "transposed")
        if key_bias:
          yield Entry(f"{key}.qkv.bias", tuple(f"{part}/bias" for part in parts), i, "same")
        else:
          yield Entry(f"{key}.q_bias", (f"{path}/query/bias",), i, "same")
          yield Entry(f"{key}.v_bias", (f"{path}/value/bias",), i, "same")
        yield from linear(f"{key}.proj", f"{path}/out", i)
      elif their_name == "attn":
        yield from _attention(key, path, i)
      elif their_name == "mlp" and names is TIMM:
        yield from linear(f"{key}.fc1", f"{path}/up", i)
        yield from linear(f"{key}.fc2", f"{path}/down", i)
      elif their_name == "mlp":
        yield from linear(f"{key}.c_fc", f"{path}/up", i)
        yield from linear(f"{key}.c_proj", f"{path}/down", i)
      else:
        yield from norm(key, path, i)


def _attention(theirs: str, ours: str, layer: int | None, fused: bool = True) -> Iterator[Entry]:
  parts = tuple(f"{ours}/{part}" for part in ("query", "key", "value"))
  if fused:
    yield Entry(f"{theirs}.in_proj_weight", tuple(f"{part}/kernel" for part in parts), layer, "transposed")
  else:
    for letter, part in zip("qkv", parts, strict=True):
      yield Entry(f"{theirs}.{letter}_proj_weight", (f"{part}/kernel",), layer, "transposed")
  yield Entry(f"{theirs}.in_proj_bias", tuple(f"{part}/bias" for part in parts), layer, "same")
  yield from linear(f"{theirs}.out_proj", f"{ours}/out", layer)


# --- Checks ---


def _tidy(state_dict: Mapping, config: Config) -> dict:
  """Without what saving added: a common start, computed found, CLIP's text tower under a name of its own."""
  found = {key.removeprefix("module."): x for key, x in state_dict.items()}
  is_timm = _is_timm(config.model)
  others = OTHERS if is_timm else OTHERS | {TIMM_START: "a timm image tower"}
  for key in found:
    for start, what in others.items():
      if key.startswith(start):
        raise ValueError(
          f"these are weights of another architecture: {what} ('{key}'). Supported are open_clip's CoCa "
          "and CLIP with its own ViT and text transformer"
        )
  found = {key: x for key, x in found.items() if key not in LEFT_OUT}
  if "text_decoder.ln_final.weight" not in found and not is_timm:  # CLIP: `custom_text` only renames
    found = {key.removeprefix("text."): x for key, x in found.items()}
  for key in [key for key in found if key.endswith(".q_proj_weight")]:
    start = key.removesuffix("q_proj_weight")
    parts = [found.get(f"{start}{letter}_proj_weight") for letter in "qkv"]
    if all(x is not None and x.shape == parts[0].shape for x in parts):
      for letter in "qkv":
        del found[f"{start}{letter}_proj_weight"]
      found[f"{start}in_proj_weight"] = np.concatenate(parts)
  return found
