"""Our outputs beside open_clip's with the same full-size random weights, in fp32, and the way back.

    python tests/benchmarks/parity_open_clip.py --peer_python=PEER/bin/python --model=coca_ViT-B-32

PEER is an environment with torch, open_clip_torch and transformers. It makes a model with random weights, saves it as
open_clip does and says what it computes from random pictures and texts; here that is converted with
`python -m coca.convert`, run and compared: image and text latents, logits where there are words, greedy captions
(`--captions=0` leaves them out, they take the most time). Then the model is exported, loaded by open_clip and has to
give the same latents, bit for bit. Needs about three times the weights' size of memory, and twice of disk in a
temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SEQ_LEN = 20  # of open_clip's captions, whose last token is always EOS


def peer(args) -> None:
  """open_clip's side: makes the model and the outputs, or loads an exported one."""
  import transformers
  from peer_open_clip import import_open_clip

  if not hasattr(transformers, "BeamSearchScorer"):  # gone in version 5; open_clip then refuses to write any captions
    transformers.BeamSearchScorer = None  # it is for beams, which are not asked for here
  open_clip, torch = import_open_clip()
  folder = Path(args.folder)
  if args.peer == "again":
    model = open_clip.create_model(f"local-dir:{folder / 'exported'}").eval()
    saved = np.load(folder / "outputs.npz")
    image, text = saved["image"], saved["text"]
  else:
    settings = open_clip.get_model_config(args.model)
    (folder / "source").mkdir()
    (folder / "source/open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(args.seed)
    model = open_clip.create_model(args.model).eval()
    with torch.no_grad():
      for name, x in model.named_parameters():
        if name == "logit_scale":
          continue
        is_norm = name.split(".")[-2].startswith(("ln_", "norm")) if "." in name else False
        # Embeddings of unit size and projections that keep it, so that the outputs depend on all of the inputs.
        std = 0.1 if x.ndim < 2 else x.shape[-1] ** -0.5 if name.endswith("weight") else x.shape[0] ** -0.5
        std = 0.5 if "embedding" in name or "query" in name else std
        x.normal_(0, std).add_(1.0 if is_norm and name.endswith("weight") else 0.0)
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "source/open_clip_model.safetensors")
    (folder / "source/bpe_simple_vocab_16e6.txt.gz").write_bytes(
      Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    )
    rng, size = np.random.default_rng(args.seed), settings["vision_cfg"]["image_size"]
    length = settings["text_cfg"]["context_length"]
    image = rng.integers(0, 256, (max(args.images, args.captions), size, size, 3), np.uint8)
    text = rng.integers(1, 49406, (args.images, length))
    text[:, 0] = 49406
    for row, end in enumerate(rng.integers(3, length, args.images)):
      text[row, end], text[row, end + 1 :] = 49407, 0
    text[0, 1:], text[0, -1] = 7 + np.arange(length - 1), 49407  # one without padding

  mean, std = (torch.tensor(getattr(open_clip, f"OPENAI_DATASET_{n}")) for n in ("MEAN", "STD"))

  def pixels(image):
    return ((torch.tensor(image) / 255 - mean) / std).permute(0, 3, 1, 2)

  few, ids = pixels(image[: args.images]), torch.tensor(text).long()
  with torch.no_grad():
    outputs = {
      "image_latent": model.encode_image(few, normalize=True),
      "text_latent": model.encode_text(ids, normalize=True),
    }
    if hasattr(model, "text_decoder"):
      outputs["logits"] = model(few, ids, output_labels=False)["logits"]
      if args.captions and args.peer == "first":
        # Truly greedy: one token left to draw from, and no minimum length.
        outputs["captions"] = torch.cat(
          [
            model.generate(
              pixels(image[i : i + 16]),
              generation_type="top_k",
              top_k=1,
              seq_len=SEQ_LEN,
              min_seq_len=0,
              fixed_output_length=True,
            )
            for i in range(0, args.captions, 16)
          ]
        )
  arrays = {k: v.numpy() for k, v in outputs.items()}
  if args.peer == "again":
    for name in ("image_latent", "text_latent"):
      print(
        f"exported, loaded by open_clip: {name} "
        + (
          "bit for bit the same"
          if (arrays[name] == saved[name]).all()
          else f"differs by {np.abs(arrays[name] - saved[name]).max():.1e}"
        ),
        flush=True,
      )
  else:
    np.savez(folder / "outputs.npz", image=image, text=text.astype(np.int32), **arrays)
    print(f"open_clip {args.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)


def compare(folder: Path, images: int, captions: int) -> bool:
  """Our side: loads the converted directory and compares. Returns whether all is well."""
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")
  from flax import nnx

  import coca
  from coca.config.special import Special

  model = coca.load(folder / "converted")
  expected = np.load(folder / "outputs.npz")
  image, text = expected["image"], expected["text"]
  forward, params = model.forward, model.params
  differences = {
    "image latent": np.abs(np.asarray(forward.embed_images(params, image[:images])) - expected["image_latent"]).max(),
    "text latent": np.abs(np.asarray(forward.embed_texts(params, text)) - expected["text_latent"]).max(),
  }
  same = True
  if "logits" in expected:

    @jax.jit
    def logits(params, image, text):
      m = nnx.merge(forward.graphdef, params)
      return m(image, text, contrast=False).states @ m.softmax_kernel()

    words = text != 0
    ours, theirs = np.asarray(logits(params, image[:images], text))[words], expected["logits"][words]
    differences["logits at words"] = np.abs(ours - theirs).max()
    print(f"logits: deviation {theirs.std():.2f}, over {len(theirs)} words")
  if captions and "captions" in expected:
    theirs = expected["captions"][:, : SEQ_LEN - 1]
    special = Special(model.tokenizer.bos, model.tokenizer.eos)
    writer = forward.writer(params)
    ours = np.concatenate(
      [
        np.asarray(forward.caption(writer, forward.encode(params, image[i : i + 16]), special=special).text)
        for i in range(0, captions, 16)
      ]
    )[:, 0, : SEQ_LEN - 1]
    equal = (ours == theirs).all(1)
    same = bool(equal.all())
    print(
      f"greedy captions: {equal.sum()} of {len(equal)} identical, {len(np.unique(theirs, axis=0))} distinct ones; "
      f"first: {model.tokenizer.decode(ours[0])!r}"
    )
  for name, value in differences.items():
    print(f"{name}: largest difference {value:.1e}", flush=True)
  return same and max(differences.values()) <= 1e-4


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--peer_python", help="a Python with torch and open_clip_torch")
  parser.add_argument("--model", default="coca_ViT-B-32")
  parser.add_argument("--images", type=int, default=4, help="pairs whose latents and logits are compared")
  parser.add_argument("--captions", type=int, default=64, help="pictures whose captions are compared")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peer:
    return peer(args)
  if not args.peer_python:
    parser.error("--peer_python is needed")

  def run(*command):
    subprocess.run(list(map(str, command)), check=True)

  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    own = [
      __file__,
      f"--model={args.model}",
      f"--images={args.images}",
      f"--captions={args.captions}",
      f"--seed={args.seed}",
      f"--folder={folder}",
    ]
    run(args.peer_python, *own, "--peer=first")
    run(sys.executable, "-m", "coca.convert", folder / "source", folder / "converted")
    good = compare(folder, args.images, args.captions)
    run(sys.executable, "-m", "coca.convert", folder / "converted", folder / "exported", "--to=open_clip")
    run(args.peer_python, *own, "--peer=again")
  print("all within 1e-4" if good else "NOT the same")
  sys.exit(not good)


if __name__ == "__main__":
  main()
