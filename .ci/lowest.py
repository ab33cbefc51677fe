"""Prints the lowest versions that setup.cfg allows, as constraints for pip."""

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser()
setup.read(Path(__file__).parents[1] / "setup.cfg")
extras = setup["options.extras_require"]
for line in "\n".join((setup["options"]["install_requires"], extras["notebooks"], extras["test"])).split():
  if found := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line):
    print("==".join(found.groups()))
