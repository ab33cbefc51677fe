"""vl_bart.npz: what transformers' BART (5.24.0, torch 2.13.0, float64) makes of the parameters and regions of
tests/models/test_vl_t5.py. Embeddings of regions are in torch, as j-min/VL-T5's modeling_bart.py puts them in.

    PYTHONPATH=.:tests python tests/models/golden/make_vl_bart.py      # beside coca, torch and transformers
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import layer_norm, linear
from transformers import BartConfig, BartModel

from models.test_vl_t5 import some_regions, vl_bart
from support.common import pairs, random_params

PARTS = {
  "self_attention": "self_attn",
  "cross_attention": "encoder_attn",
  "norm_self": "self_attn_layer_norm",
  "norm_cross": "encoder_attn_layer_norm",
  "norm_mlp": "final_layer_norm",
}
WITHIN = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def flat(tree, prefix=""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}/")
    else:
      yield prefix + name, torch.tensor(np.asarray(value, np.float64))


def torchs(name: str) -> str:
  """BART's name of a parameter, with {} for the layer."""
  name = (
    name.removeprefix("text_")
    .replace("embedding/tokens", "embed_tokens.weight")
    .replace("embedding/positions", "embed_positions.weight")
  )
  name = name.replace("coder/norm/", "coder/layernorm_embedding/").replace("stack/layers", "layers/{}")
  name = name.replace("mlp/up", "fc1").replace("mlp/down", "fc2").replace("kernel", "weight").replace("scale", "weight")
  return ".".join(PARTS.get(part, WITHIN.get(part, part)) for part in name.split("/"))


def main():
  settings, image, text = vl_bart(), some_regions(4), pairs(vl_bart(), 4)["text"]
  tower, n = settings.model.text, settings.model.med.positions
  config = BartConfig(
    vocab_size=tower.vocab,
    max_position_embeddings=n,
    encoder_layers=tower.unimodal_layers,
    encoder_ffn_dim=tower.mlp,
    encoder_attention_heads=tower.heads,
    decoder_layers=tower.multimodal_layers,
    decoder_ffn_dim=tower.mlp,
    decoder_attention_heads=tower.heads,
    d_model=tower.width,
    pad_token_id=0,
    attn_implementation="eager",
  )
  model, ours = BartModel(config).double().eval(), dict(flat(random_params(settings, 3)))
  theirs = model.state_dict()
  for name, x in ours.items():
    key = torchs(name)
    if name.endswith("kernel"):
      x = x.mT
    if name.endswith("positions"):
      theirs[key][2:] = x  # the first two are no position's
    elif "{}" in key:
      theirs |= {key.format(i): part for i, part in enumerate(x)}
    elif key in theirs:
      theirs[key] = x
  words = ours["encoder/embedding/tokens"]
  theirs |= dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), words)
  model.load_state_dict(theirs)

  boxes = torch.tensor(image.boxes, dtype=torch.float64)
  boxes = torch.cat([boxes, (boxes[..., 2:] - boxes[..., :2]).prod(-1, keepdim=True)], -1)
  regions = ours["image_order"] + words.flip(0)[: boxes.shape[1]]
  for name, x in (("region", torch.tensor(image.features, dtype=torch.float64)), ("box", boxes)):
    x = linear(x, ours[f"{name}_projection/kernel"].T, ours[f"{name}_projection/bias"])
    regions = regions + layer_norm(x, x.shape[-1:], ours[f"{name}_norm/scale"], ours[f"{name}_norm/bias"], 1e-5)
  with torch.no_grad():
    encoder, ids = model.encoder, torch.tensor(image.tags, dtype=torch.long)
    x = encoder.layernorm_embedding(encoder.embed_tokens(ids) + encoder.embed_positions.weight[2:][: ids.shape[1]])
    x = torch.cat([x, regions], dim=1)
    seen = torch.cat([ids != 0, torch.tensor(image.mask)], dim=1)
    mask = torch.where(seen, 0.0, -torch.inf)[:, None, None].double()
    for layer in encoder.layers:
      x = layer(x, mask)
    decoded = model.decoder(torch.tensor(text, dtype=torch.long), None, x, seen.long(), use_cache=False)
    logits = decoded.last_hidden_state @ words.T
  path = Path(__file__).with_name("vl_bart.npz")
  np.savez_compressed(path, states=x.float().numpy(), logits=logits[:, ::4].float().numpy())


if __name__ == "__main__":
  main()
