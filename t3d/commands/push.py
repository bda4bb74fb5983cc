"""`t3d push`, which is `python -m t3d.hub push`."""

from t3d.hub.__main__ import push


def main(arguments: list[str]) -> None:
    """Shows or sends; see `t3d.hub.__main__`."""
    push(arguments)
