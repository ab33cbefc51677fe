"""Takes a model to where there is no coca: StableHLO for any batch and platform, ONNX, weights and a manifest.

    python -m coca.export --model=runs/tiny --out=exported
    python -m coca.export --model=models/clip --out=exported --onnx
    python -m coca.export --model=runs/blip --out=exported --strategy=beam --beams=3

OUT has the image tower, the text tower and the captioner (those that the model has), each as one program, the weights
in a safetensors file beside them, the tokenizer, and manifest.json: what the programs take and give, how images are
prepared, how captions were decoded. docs/export.md shows how it is run. OUT appears as a whole or not at all.
"""

import argparse

import jax

from coca import inference
from coca.config.command_line import one_line
from coca.decoding.settings import add_flags, from_flags
from coca.interop.export import export_model
from coca.interop.files import check_new
from coca.storage.checkpoint import CheckpointError


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.export", description="Take a model to where there is no coca.")
  parser.add_argument("--model", required=True, help="working directory, converted model, or hf://org/name")
  parser.add_argument("--out", required=True, help="the folder to write")
  parser.add_argument("--onnx", action="store_true", help="also write the towers as ONNX: pip install -e '.[onnx]'")
  parser.add_argument(
    "--dtype",
    default="",
    choices=("", "float32", "bfloat16"),
    help="what the programs compute in; left out: the model's own, float32 where that is 'auto'",
  )
  add_flags(parser.add_argument_group("how captions are written", "see coca/config/decoding.py"))
  args = parser.parse_args(argv)
  with one_line(ValueError, ImportError, OSError, CheckpointError):
    decoding = from_flags(vars(args))  # before the model is loaded, which takes long
    check_new(args.out)
    model = inference.load(args.model, devices=jax.local_devices()[:1])
    manifest = export_model(model, args.out, decoding, args.dtype, args.onnx)
  for name, program in manifest["programs"].items():
    given, out = (f"{x['dtype']} {x['shape']}".replace("'", "") for x in (program["input"], program["output"]))
    near = f"; in onnxruntime to {program['onnx']['difference']:.0e}" if "onnx" in program else ""
    print(f"{name}: {given} -> {out}{near}")
  for name, reason in manifest["lacks"].items():
    print(f"{name} is left out: {reason}")
  print(f"wrote {args.out}; docs/export.md shows how to run it")


if __name__ == "__main__":
  main()
