"""Configurations that come with t3d: lists their names, or prints the path of one, to look at or to launch with."""

import sys

from t3d.arguments import ArgumentParser
from t3d.storage.paths import CONFIG_FOLDERS, config_path, shipped_folder

EXAMPLE = 'accelerate launch --config_file "$(t3d configs accelerate_configs/1_node_8_gpus)" -m t3d train config=t3d'


def main(arguments: list[str]) -> None:
    """Prints what the command line asks for.

    Raises:
        UserError: wrong arguments, or no such configuration.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("name", nargs="?", help="as behind config=, or accelerate_configs/NAME: print its path")
    name = vars(parser.parse_args(arguments)).get("name")
    sys.stdout.write(f"{config_path(name)}\n" if name else "".join(f"{known}\n" for known in names()))


def names() -> list[str]:
    """Every configuration by the name that `config_path` finds it under: the commands' own, then accelerate's."""
    found = []
    for folder in CONFIG_FOLDERS:
        place = shipped_folder(folder)
        prefix = "" if folder == "configs" else f"{folder}/"
        found += sorted(f"{prefix}{path.relative_to(place).with_suffix('')}" for path in place.rglob("*.yaml"))
    return found
