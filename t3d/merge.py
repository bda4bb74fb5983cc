"""Merges a LoRA adapter into the model that it was trained on, and writes the model folder that results.

The adapter may have been trained anywhere, as long as peft wrote it. OUT holds the merged weights and everything else
of BASE, so that it decodes wherever BASE does, without peft; the adapter lies in OUT/adapter.
"""

from t3d.entry import run_entry

import logging

from t3d.arguments import ArgumentParser
from t3d.errors import ConfigError
from t3d.sdar.adapter import merge, read_adapter
from t3d.sdar.checkpoint import load_model, load_model_config, resolve_checkpoint, save_model
from t3d.storage.folders import saving
from t3d.storage.paths import existing_path, user_path

EXAMPLE = "python -m t3d.merge JetLM/SDAR-1.7B-Chat my-adapter SDAR-1.7B-mine"

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Parses the command line, merges and writes.

    Raises:
        UserError: wrong arguments; no such model or adapter, or one for another model; a folder that is taken.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("base", metavar="BASE", help="the model that the adapter was trained on: a folder or hub id")
    parser.add_argument("adapter", metavar="ADAPTER", type=existing_path, help="the adapter's folder, as peft wrote it")
    parser.add_argument("out", metavar="OUT", type=user_path, help="the folder to write; it must not exist")
    given = parser.parse_args(arguments)
    if given.out.exists() or given.out.is_symlink():
        raise ConfigError("OUT", "a folder that does not exist", given.out)
    adapter, base = read_adapter(given.adapter), resolve_checkpoint(given.base)
    trained_on = adapter.config.base_model_name_or_path
    if trained_on and str(trained_on) != given.base:
        logger.warning("%s was trained on %s, and is merged into %s", given.adapter, trained_on, given.base)
    network = merge(load_model(base, config=load_model_config(base)), adapter, given.adapter)
    with saving(given.out):
        save_model(network, network.state_dict(), base, given.out, adapter=adapter)
    logger.info("%s: %s with the adapter of %s", given.out, given.base, given.adapter)


if __name__ == "__main__":
    run_entry(main)
