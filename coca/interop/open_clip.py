"""open_clip's state_dict as our parameters, and back: the same numbers in another arrangement.

Theirs are names of torch's modules, one tensor a layer, `Linear.weight` as [out, in], the projections of self-attention
fused by rows (query, key, value). Ours are paths with '/', layers stacked [L, ...], kernels as [in, out].
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from coca.config import Config
from coca.forward import abstract_model
from coca.sharding import path_name

SELF = {"ln_1": "norm_self", "attn": "self_attention", "ln_2": "norm_mlp", "mlp": "mlp"}
SELF_BEFORE_CROSS = SELF | {"ln_2": "norm_self_mlp", "mlp": "self_mlp"}
CROSS = {"ln_1": "norm_cross", "ln_1_kv": "norm_context", "attn": "cross_attention", "ln_2": "norm_mlp", "mlp": "mlp"}

OTHERS = {  # starts of names in layouts that are not read here
  "visual.trunk.": "a timm image tower",
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
LEFT_OUT = ("attn_mask", "text.attn_mask", "text_decoder.attn_mask",  # computed; old files have them
            "input_resolution", "context_length", "vocab_size")  # of OpenAI's archives


class Entry(NamedTuple):
  """One of their tensors."""

  key: str
  paths: tuple[str, ...]  # ours; several are rows of theirs, one after the other
  layer: int | None  # index into our stack
  kind: str  # 'same', 'transposed', 'conv'


def to_params(state_dict: Mapping[str, np.ndarray], config: Config) -> dict:
  """Our parameters, fp32.

  Args:
    state_dict: as torch saves it; names may begin with 'module.', the projections of attention may be separate.
    config: of `coca.interop.open_clip_config.to_config`.

  Raises:
    ValueError: names that are unknown or missing, or shapes that differ (they are listed), or values that are not
      finite.
  """
  state_dict = _tidy(state_dict)
  abstract = abstract_model(config)[1]
  shapes, treedef = jax.tree_util.tree_flatten_with_path(abstract)
  ours = {path_name(path): np.empty(x.shape, np.float32) for path, x in shapes}
  entries = list(_entries(config))
  _check(state_dict, entries, ours)
  for entry in tqdm(entries, unit=" tensors", desc="converting", disable=None, delay=2):
    value = np.asarray(state_dict[entry.key]).astype(np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f"'{entry.key}' holds values that are not finite: the file is damaged, or the training diverged")
    for path, part in zip(entry.paths, np.split(value, len(entry.paths)) if len(entry.paths) > 1 else [value],
                          strict=True):
      target = ours[path] if entry.layer is None else ours[path][entry.layer]
      target[...] = _to_ours(part, entry.kind).reshape(target.shape)
  return jax.tree.unflatten(treedef, list(ours.values()))


def to_state_dict(params, config: Config) -> dict[str, np.ndarray]:
  """open_clip's tensors of our parameters, fp32, in the order and with the names of its own files."""
  ours = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
  patch, out = config.model.image.patch, {}
  for entry in _entries(config):
    parts = [ours[p] if entry.layer is None else ours[p][entry.layer] for p in entry.paths]
    parts = [_to_theirs(x, entry.kind, patch) for x in parts]
    out[entry.key] = np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
    if not parts[0].ndim:
      out[entry.key] = out[entry.key].reshape(())  # ascontiguousarray makes it [1]
  return out


# --- Names ---


def _entries(config: Config) -> Iterator[Entry]:
  model, captions = config.model, config.model.text.multimodal_layers > 0
  text = "text." if captions else ""

  yield Entry("logit_scale", ("temperature/log_scale",), None, "same")
  if config.contrastive.loss != "softmax":
    yield Entry("logit_bias", ("temperature/logit_bias",), None, "same")

  yield Entry("visual.class_embedding", ("image_encoder/class_token",), None, "same")
  yield Entry("visual.positional_embedding", ("image_encoder/positions",), None, "same")
  yield Entry("visual.conv1.weight", ("image_encoder/patches/kernel",), None, "conv")
  if model.image.norm_pre:
    yield from _norm("visual.ln_pre", "image_encoder/norm_pre")
  yield from _blocks("visual.transformer.resblocks", "image_encoder", model.image.layers, SELF)
  if model.poolers.kind == "openclip":
    yield Entry("visual.attn_pool.query", ("generative_pooler/queries",), None, "same")
    # torch fuses the projections where queries and tokens have the same width.
    fused = model.image.width == model.text.width
    yield from _attention("visual.attn_pool.attn", "generative_pooler/attention", None, fused)
    yield from _norm("visual.attn_pool.ln_q", "generative_pooler/norm_queries")
    yield from _norm("visual.attn_pool.ln_k", "generative_pooler/norm_tokens")
    yield from _norm("visual.ln_post", "generative_pooler/norm")
  else:
    yield from _norm("visual.ln_post", "image_encoder/norm")
  yield Entry("visual.proj", ("image_projection/kernel",), None, "same")

  if captions:
    yield Entry("text.cls_emb", ("unimodal/cls",), None, "same")
  yield Entry(f"{text}positional_embedding", ("embedding/positions",), None, "same")
  yield Entry(f"{text}token_embedding.weight", ("embedding/tokens",), None, "same")
  yield from _blocks(f"{text}transformer.resblocks", "unimodal", model.text.unimodal_layers, SELF)
  yield from _norm(f"{text}ln_final", "unimodal/norm")
  yield Entry(f"{text}text_projection", ("unimodal/projection/kernel",), None, "same")

  if captions:
    layers = model.text.multimodal_layers
    yield from _blocks("text_decoder.resblocks", "multimodal", layers, SELF_BEFORE_CROSS)
    yield from _blocks("text_decoder.cross_attn", "multimodal", layers, CROSS)
    yield from _norm("text_decoder.ln_final", "multimodal/norm")
    yield Entry("text_decoder.text_projection", ("softmax/kernel",), None, "same")


def _blocks(theirs: str, tower: str, layers: int, names: dict[str, str]) -> Iterator[Entry]:
  for i in range(layers):
    for their_name, our_name in names.items():
      key, path = f"{theirs}.{i}.{their_name}", f"{tower}/stack/layers/{our_name}"
      if their_name == "attn":
        yield from _attention(key, path, i)
      elif their_name == "mlp":
        yield from _linear(f"{key}.c_fc", f"{path}/up", i)
        yield from _linear(f"{key}.c_proj", f"{path}/down", i)
      else:
        yield from _norm(key, path, i)


def _attention(theirs: str, ours: str, layer: int | None, fused: bool = True) -> Iterator[Entry]:
  parts = tuple(f"{ours}/{part}" for part in ("query", "key", "value"))
  if fused:
    yield Entry(f"{theirs}.in_proj_weight", tuple(f"{part}/kernel" for part in parts), layer, "transposed")
  else:
    for letter, part in zip("qkv", parts, strict=True):
      yield Entry(f"{theirs}.{letter}_proj_weight", (f"{part}/kernel",), layer, "transposed")
  yield Entry(f"{theirs}.in_proj_bias", tuple(f"{part}/bias" for part in parts), layer, "same")
  yield from _linear(f"{theirs}.out_proj", f"{ours}/out", layer)


def _linear(theirs: str, ours: str, layer: int | None) -> Iterator[Entry]:
  yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), layer, "transposed")
  yield Entry(f"{theirs}.bias", (f"{ours}/bias",), layer, "same")


def _norm(theirs: str, ours: str, layer: int | None = None) -> Iterator[Entry]:
  yield Entry(f"{theirs}.weight", (f"{ours}/scale",), layer, "same")
  yield Entry(f"{theirs}.bias", (f"{ours}/bias",), layer, "same")


# --- Values ---


def _to_ours(x, kind: str):
  if kind == "transposed":
    return x.T
  if kind == "conv":  # [D, 3, P, P]: our patches are rows, columns, colours
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
  return x


def _to_theirs(x, kind: str, patch: int):
  if kind == "transposed":
    return x.T
  if kind == "conv":
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
  return x


# --- Checks ---


def _tidy(state_dict: Mapping) -> dict:
  """Without what saving added: a common start, computed tensors, CLIP's text tower under a name of its own."""
  tensors = {key.removeprefix("module."): x for key, x in state_dict.items()}
  for key in tensors:
    for start, what in OTHERS.items():
      if key.startswith(start):
        raise ValueError(f"these are weights of another architecture: {what} ('{key}'). Supported are open_clip's CoCa "
                         "and CLIP with its own ViT and text transformer")
  tensors = {key: x for key, x in tensors.items() if key not in LEFT_OUT}
  if "text_decoder.ln_final.weight" not in tensors:  # CLIP: `custom_text` only renames
    tensors = {key.removeprefix("text."): x for key, x in tensors.items()}
  for key in [key for key in tensors if key.endswith(".q_proj_weight")]:
    start = key.removesuffix("q_proj_weight")
    parts = [tensors.get(f"{start}{letter}_proj_weight") for letter in "qkv"]
    if all(x is not None and x.shape == parts[0].shape for x in parts):
      for letter in "qkv":
        del tensors[f"{start}{letter}_proj_weight"]
      tensors[f"{start}in_proj_weight"] = np.concatenate(parts)
  return tensors


def _check(state_dict: dict, entries: list[Entry], ours: dict) -> None:
  patch = round((ours["image_encoder/patches/kernel"].shape[0] / 3) ** 0.5)
  differing, seen = [], set()
  for entry in entries:
    seen.add(entry.key)
    whole = ours[entry.paths[0]]
    part = _to_theirs(whole if entry.layer is None else whole[entry.layer], entry.kind, patch).shape
    expected = (len(entry.paths) * part[0], *part[1:]) if part else part
    if entry.key not in state_dict:
      differing.append(f"  {entry.key}: missing, {list(expected)} expected")
    elif (found := tuple(state_dict[entry.key].shape)) != expected and not (expected == () and found == (1,)):
      differing.append(f"  {entry.key}: {list(found)} in the file, {list(expected)} expected")
  differing += [f"  {key}: unknown" for key in state_dict if key not in seen]
  if differing:
    more = f"\n  and {len(differing) - 12} more" if len(differing) > 12 else ""
    raise ValueError("the weights are not those of the config:\n" + "\n".join(differing[:12]) + more)
