"""What the documentation says can be typed, and is there: commands, links, paths, Python and the version."""

import argparse
import configparser
import dataclasses
import importlib.util
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from absl import app, flags
from PIL import Image

import coca
from coca.capfilt import settings as capfilt
from coca.config import Config, parse
from coca.data.tokenizers.sentencepiece import train
from coca.devices.sharding import make_mesh
from coca.inference.forward import Forward
from coca.storage import weights
from coca.storage.workdir import write_run
from support.films import film
from support.processes import own_flags

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for folder in (".", "docs", "launch", "tests/benchmarks") for page in ROOT.glob(f"{folder}/*.md"))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
NOTEBOOKS = list(ROOT.glob("notebooks/*.ipynb"))


def each(pages):
  return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


# Programs of others, whose flags are theirs to know; tests/test_launch.py has those that the scripts of launch/ call.
OTHERS = {"diff", "git", "pre-commit", "pyright", "pytest", "ray", "ruff", "sbatch", "sky", "tensorboard", "xpk"}
# What commands start from, and a config of such a model.
MODELS = {
  "runs/tiny": ("coca_tiny", "runlocal"),
  "runs/coca_base": ("coca_base", "runlocal"),
  "runs/noisy": ("coca_tiny", "web"),
  "models/coca_b32": ("coca_tiny", None),
  "runs/blip": ("blip_tiny", None),
  "runs/snli_ve": ("finetune_snli_ve", "init_from={folder}/runs/tiny,runlocal"),
  "runs/nlvr2": ("finetune_nlvr2", "init_from={folder}/runs/tiny,runlocal"),
  "runs/kinetics400": ("finetune_video", "init_from={folder}/runs/tiny,runlocal"),
  "runs/blip_nlvr2": ("blip_nlvr2", "init_from={folder}/runs/blip,runlocal"),
  "runs/blip_visdial": ("blip_visdial", "init_from={folder}/runs/blip,runlocal"),
  "models/start": ("blip_tiny", None),
}
RANDOM = {
  "runs/tiny",
  "runs/snli_ve",
  "runs/nlvr2",
  "runs/kinetics400",
  "runs/blip_visdial",
}  # with parameters, for the Python


def text_of(page: Path) -> str:
  """Of a notebook its prose."""
  text = page.read_text(encoding="utf-8")
  if page.suffix == ".ipynb":
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
  return text


def shell_of(page: Path) -> str:
  """The commands of a page: its blocks of bash, indented ones that begin with python, and those within a sentence."""
  text = text_of(page)
  if page in WORKFLOWS:
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    return "\n".join(step["run"] for step in steps if "run" in step)
  blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
  blocks += [block for block in re.findall(r"(?:^    .*\n)+", text, re.M) if block.strip().startswith("python ")]
  prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  return "\n".join([*blocks, *re.findall(r"`((?:python3?|pip|bash) [^`]+)`", prose)])


# Every program is one that is not found: bash hands it to this function, which says what was called, and where.
RECORDER = r"""
command_not_found_handle() {
  local name; local -a exported=()
  for name in $(compgen -e); do exported+=("$name=${!name}"); done
  printf '%s\0' "$#" "$@" "${#exported[@]}" "${exported[@]}"
}
source() { :; }
"""


def commands_in(shell: str) -> list[tuple[list[str], dict[str, str]]]:
  """What a shell would call: (program and arguments, environment) each."""
  shell = re.sub(r"(^|[\s&])[\w.]+/bin/", r"\1", shell, flags=re.M)  # programs of an environment, by their names
  done = subprocess.run(["/bin/bash", "-c", RECORDER + shell], env={"PATH": "/nowhere"}, text=True, capture_output=True)
  assert done.returncode == 0 and not done.stderr, done.stderr
  words, found = iter(done.stdout.split("\0")[:-1]), []
  for count in words:
    call = [next(words) for _ in range(int(count))]
    found.append((call, dict(next(words).split("=", 1) for _ in range(int(next(words))))))
  return found


class Parsed(Exception):
  """A command line was read to its end."""


@pytest.fixture
def read_line(monkeypatch):
  """Reads a command line with the program's own parser, and its config with the config's own checks."""
  read = argparse.ArgumentParser.parse_known_args

  def run(main, flags_parser):
    flags_parser(sys.argv)
    config = flags.FLAGS.config
    if config is not None:
      (capfilt.parse if "capfilt" in main.__globals__["__file__"] else parse)(config)
    raise Parsed

  def parse_known_args(self, args=None, namespace=None):
    _, rest = read(self, args, namespace)
    assert not rest, f"{self.prog} does not know {rest}"
    raise Parsed

  monkeypatch.setattr(app, "run", run)
  monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)

  def read_line(file: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [file, *arguments])
    monkeypatch.syspath_prepend(str(Path(file).parent))
    with own_flags(), pytest.raises(Parsed):
      runpy.run_path(file, run_name="__main__")

  return read_line


def module_file(name: str) -> str:
  spec = importlib.util.find_spec(name)
  assert spec, f"there is no {name}"
  return module_file(f"{name}.__main__") if spec.submodule_search_locations else spec.origin


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A folder that looks like a checkout with the models of MODELS; the parameters of RANDOM are random."""
  folder = tmp_path_factory.mktemp("checkout")
  for name in ("configs", "launch", "tests"):
    (folder / name).symlink_to(ROOT / name)
  (folder.parent / "before").symlink_to(ROOT)
  tokens = train([f"a word number {i}" for i in range(40)], 60)
  for name, (file, arg) in MODELS.items():
    (folder / name).mkdir(parents=True)
    tokens.save(folder / name / tokens.file)
    arg = arg and arg.format(folder=folder)
    config, more = parse(runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"](arg)), {}
    if name in RANDOM:
      params = Forward(config, make_mesh(devices=jax.devices()[:1])).abstract_params
      params = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(0, 0.1, x.shape).astype(x.dtype), params)
      more = {"weights_sha256": weights.write(folder / name / weights.FILE, params)}
      more["labels"] = [f"class {i}" for i in range(config.classification.classes)]
    write_run(config, tokens, folder / name, **more)
  (folder / "photos").mkdir()
  for name in ("cat.png", "dog.png", "photos/1.png", "photos/2.png"):
    Image.new("RGB", (24, 20), "red").save(folder / name)
  for name in ("juggling.mp4", "sleeping.webm"):
    (folder / name).write_bytes(film(9, name.rpartition(".")[2], "libx264" if name.endswith("mp4") else "libvpx-vp9"))
  return folder


def check_command(call: list[str], environment: dict[str, str], read_line) -> None:
  program, *arguments = call
  if program in ("python", "python3") and arguments[0] == "-m":
    if arguments[1].startswith("coca.") and not arguments[2:]:
      module_file(arguments[1])  # named within a sentence
    elif arguments[1].startswith("coca."):
      read_line(module_file(arguments[1]), *arguments[2:])
    else:
      assert arguments[1] in ("venv", "pytest", "pip"), call
  elif program in ("python", "python3"):
    if "argparse" in Path(arguments[0]).read_text():
      read_line(*arguments)
    else:
      assert not arguments[1:], f"{arguments[0]} takes no arguments"
  elif program == "pip":
    extras = re.findall(r"\.\[(.*)\]", " ".join(arguments))
    assert set(",".join(extras).split(",")) - {""} <= set(setup()["options.extras_require"]), call
  elif program == "bash":
    script, *arguments = arguments
    assert (ROOT / script).is_file(), call
    if "--dry-run" in (ROOT / script).read_text() and "watch" not in arguments:
      dry = ["/bin/bash", script, "--dry-run", *(a for a in arguments if a != "--dry-run")]
      environment = {**environment, "PATH": os.environ["PATH"]}
      done = subprocess.run(dry, cwd=ROOT, env=environment, text=True, capture_output=True)
      assert done.returncode == 0, done.stderr
  else:
    assert program in OTHERS, f"what is {program}? {call}"


def setup() -> configparser.ConfigParser:
  found = configparser.ConfigParser()
  found.read(ROOT / "setup.cfg")
  return found


@each([*PAGES, *WORKFLOWS])
def test_commands_are_read_by_their_own_parsers(page, checkout, monkeypatch, read_line):
  monkeypatch.chdir(checkout)
  for call, environment in commands_in(shell_of(page)):
    check_command(call, environment, read_line)


@pytest.mark.slow
@each([page for page in PAGES if "```python" in page.read_text()])
def test_python_runs(page, checkout, monkeypatch):
  monkeypatch.chdir(checkout)
  names = {}
  exec("\n".join(re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S)), names)
  if "get_config" in names:
    batches = [parse(names["get_config"](arg)).data.batch for arg in (None, "runlocal")]
    assert batches == ([4096, 8] if page.name == "own-data.md" else [Config().data.batch] * 2)


def slug(heading: str) -> str:
  """GitHub's anchor of a heading."""
  text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
  return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@each([*PAGES, *NOTEBOOKS])
def test_links_lead_somewhere(page):
  prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
  for link in re.findall(r"\]\(([^)\s]+)\)", prose):
    if re.match(r"[a-z]+:", link):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{link}: there is no {target}"
    if anchor:
      headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text_of(target), flags=re.M | re.S), re.M)
      assert anchor in [slug(heading) for heading in headings], link


# A path within the repository; {a,b} and * are the shell's. Scripts unpack the repository as coca/.
PATH = re.compile(r"(?<![\w/.:$}~@-])(?:coca/)?((?:coca|configs|docs|launch|notebooks|tests)/[\w./*{},-]*[\w/}*])")
NAME = re.compile(r"`(coca(?:\.\w+)+)")
CODE = [
  path
  for pattern in ("coca/**/*.py", "configs/*.py", "launch/*[!md]", "tests/benchmarks/*.py")
  for path in ROOT.glob(pattern)
]


def braces(path: str) -> list[str]:
  head, brace, rest = path.partition("{")
  inner, _, tail = rest.partition("}")
  return [end for each in inner.split(",") for end in braces(head + each + tail)] if brace else [path]


def test_paths_that_are_named_are_there():
  absent = [
    f"{page.relative_to(ROOT)}: {path}"
    for page in [*PAGES, *NOTEBOOKS, *CODE]
    for found in PATH.findall(text_of(page))
    for path in braces(re.sub(r"\{\w+\}", "*", found))
    if not any(ROOT.glob(path.rstrip("/")))
  ]
  assert not absent


def test_names_that_are_named_are_there():
  absent = []
  for page in [*PAGES, *CODE]:
    for name in NAME.findall(text_of(page)):
      try:
        pkgutil.resolve_name(name)
      except (AttributeError, ModuleNotFoundError):
        absent.append(f"{page.relative_to(ROOT)}: {name}")
  assert not absent


def is_setting(kind, names: list[str]) -> bool:
  if not names:
    return True
  if dataclasses.is_dataclass(kind):
    return is_setting(typing.get_type_hints(kind).get(names[0]), names[1:])
  return typing.get_origin(kind) is dict and is_setting(typing.get_args(kind)[1], names[1:])


def test_settings_that_are_named_are_there():
  absent = []
  for page in PAGES:
    text = re.sub(r"^```python\n.*?^```", "", text_of(page), flags=re.M | re.S)
    for name in re.findall(r"(?<![\w./])config\.([a-z]\w*(?:\.\w+)*)", text):
      known = name in ("json", "py") or any(is_setting(kind, name.split(".")) for kind in (Config, capfilt.CapFilt))
      if not known:
        absent.append(f"{page.relative_to(ROOT)}: config.{name}")
  assert not absent


def test_one_version():
  assert setup()["metadata"]["version"] == "attr: coca.__version__"
  assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == coca.__version__
  released = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
  assert released[0] == coca.__version__
