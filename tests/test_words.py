"""The words of coca/: docstrings are statements, and an image is called an image."""

import ast
import re
from pathlib import Path

COCA = Path(__file__).parents[1] / "coca"
# BLIP's prompt, and what the corpus in the package says of itself.
PICTURE = re.compile(r"""["']a picture of |doc=.*picture""")


def test_docstrings_are_statements():
  wrong = []
  for path in sorted(COCA.rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        said = ast.get_docstring(node) or ""
        if re.match("(What|Whether|How|Which|Of|Where|When|Who|Why)\\b", said):
          wrong.append(f"{path.relative_to(COCA)}: {said.splitlines()[0]}")
  assert not wrong


def test_an_image_is_called_an_image():
  wrong = [
    f"{path.relative_to(COCA)}: {line.strip()}"
    for ending in ("py", "js", "html", "css")
    for path in sorted(COCA.rglob(f"*.{ending}"))
    for line in path.read_text().splitlines()
    if "picture" in PICTURE.sub("", line).lower()
  ]
  assert not wrong
