"""Table: evaluates every checkpoint on every benchmark at every decoding, and writes Markdown, CSV, LaTeX and JSON.

--dry-run beside the keys says whether the command would run here, and starts nothing.
"""

import sys

from t3d.doctor.command import DRY_RUN, dry_run
from t3d.errors import ConfigError

EXAMPLE = "t3d table config=tables/table1 table.bases=[SDAR-4B-Chat]"


def main(arguments: list[str]) -> None:
    """Parses the configuration and fills the table."""
    if DRY_RUN in arguments:
        dry_run("eval", arguments)
        return
    # Here, so that a dry run can tell of a library that does not load.
    from t3d.config import EvalConfig, load_config
    from t3d.tables.fill import run_table

    config = load_config(EvalConfig, arguments, __doc__ or "", EXAMPLE)
    if not config.table.checkpoints:
        raise ConfigError("table.checkpoints", "a row name and a checkpoint for each row of the table", "none")
    sys.stdout.write(run_table(config))
