"""What every entry point does around its work: logging, cache folders, and one line for a user's mistake."""

import logging
import os
import sys
from collections.abc import Callable

from t3d.errors import UserError
from t3d.paths import cache_root

CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point on the command line: status 0 on success, 2 with one line for a user's mistake.

    Under torchrun only local rank 0 prints the line: every process meets the same mistake.
    """
    logging.basicConfig(format="%(message)s")
    for ours in ("t3d", "__main__"):  # the libraries' own news is not the user's
        logging.getLogger(ours).setLevel(logging.INFO)
    use_cache_root()
    try:
        main(sys.argv[1:])
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def use_cache_root() -> None:
    """Points the compilers' caches under $T3D_CACHE_ROOT (~/.cache/t3d), where they are not set one by one."""
    for variable, folder in CACHES.items():
        os.environ.setdefault(variable, str(cache_root() / folder))
