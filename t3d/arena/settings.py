"""What an arena compares: a rollout, rows, seeds and decodings, as its YAML file declares them."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from t3d.arena.worlds import HELD_OUT, WORLDS
from t3d.config.keys import check_name, key
from t3d.errors import ConfigError
from t3d.storage.files import read_json
from t3d.storage.paths import TOY_TEACHER, user_path

DECODING = re.compile(r"(\d+)/(\d+)( .+)?")
TUNED = "tuned="


@dataclass
class ArenaConfig:
    """One comparison."""

    name: str = key(MISSING, "the results are <folder>/results/<name>.json")
    title: str = key("", "heading of its part of the page (empty: name)")
    text: str = key("", "what the part says above its table")
    folder: str = key("toy_paper", "where data, rollouts, students, cells and results lie; arenas share what is equal")
    links: str | None = key(None, "where in folder the first seed's students have their rows' names; null: nowhere")
    world: str = key("TinyMath", "where problems come from", one_of=tuple(WORLDS))
    teacher: str = key(TOY_TEACHER, "model that gives the rollouts, and that every student starts from")
    num_rollouts: int = key(2500, "problems of the train split that the teacher answers", low=1)
    rollout: str = key("config=toy/sdar_sample", "keys (key=value key=value) of the teacher's rollout")
    split: str = key("test", "split that is evaluated", one_of=("validation", "test"))
    num_problems: int = key(500, "problems of it", low=2, high=HELD_OUT)
    evaluation: str = key("config=toy/eval", "keys of every evaluation")
    decodings: dict[str, str] = key(
        {}, "name -> further keys; a name is block size/steps, or that and a word or more: 4/4 raw 0.9"
    )
    few_step: list[str] = key(
        [], "decodings whose mean accuracy stands for a row, and chooses a grid's setting (empty: all)"
    )
    seeds: list[int] = key([1, 2, 3, 4, 5], "seeds of training: data order, states and fakes")
    common: str = key("", "keys of every student, before those of its row")
    rows: dict[str, str] = key(
        {},
        "row -> keys of its students; none: the teacher itself; {solutions} stands for the world's worked solutions,"
        " and tuned=NAME for what a grid chose",
    )
    grids: dict[str, str] = key(
        {}, "row -> keys whose values may be alternatives, a|b|c: each combination is tried, and the best one chosen"
    )
    tuned: str | None = key(None, "results of an arena with grids, which tuned=NAME looks into")
    labels: dict[str, str] = key({}, "row -> its name on the page")
    summary: list[str] = key([], "rows of the README's table (empty: all)")
    baseline: str | None = key(None, "row that the others are compared with, by problem and seed; null: the first")
    contrasts: dict[str, list[str]] = key({}, "row -> rows that are compared with it as well")
    beside: str | None = key(
        None, "arena whose rows of the same names these are compared with as well, where the page has both"
    )
    processes: int = key(2, "cells worked on at a time, each by a process of one thread", low=1)

    def __post_init__(self) -> None:
        """Checks names against each other."""
        check_name("name", self.name)
        if bool(self.rows) == bool(self.grids):
            raise ConfigError("rows, grids", "either of them", "both" if self.rows else "neither")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError("seeds", "different whole numbers of at least 0", self.seeds)
        if not self.decodings:
            raise ConfigError("decodings", "at least one", "none")
        for name in self.decodings:
            shape = DECODING.fullmatch(name)
            if shape is None or not 1 <= int(shape[2]) <= int(shape[1]):
                raise ConfigError("decodings", "names like 8/4 or 8/4 WORDS, with at most as many steps", name)
        known = [*self.rows, *self.grids]
        baselines = [self.baseline] if self.baseline else []
        for where, names, of in (
            ("few_step", self.few_step, [*self.decodings]),
            ("labels", [*self.labels], known),
            ("baseline", baselines, known),
            ("summary", self.summary, known),
            ("contrasts", [*self.contrasts, *itertools.chain.from_iterable(self.contrasts.values())], known),
        ):
            if unknown := [name for name in names if name not in of]:
                raise ConfigError(where, f"any of {', '.join(of)}", unknown[0])
        sizes = {row: len(alternatives(text)) for row, text in self.grids.items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError("grids", "grids of one size, so that each method is tuned alike", sizes)

    def averaged(self) -> list[str]:
        """The decodings whose mean accuracy stands for a row."""
        return self.few_step or [*self.decodings]

    def row_names(self) -> list[str]:
        """Every row; a grid is a row for each of its combinations."""
        return [*self.rows, *self._combinations()]

    def students(self) -> dict[str, list[str]]:
        """The keys of each row's students; none: the teacher.

        Raises:
            UserError: a row that is tuned, and no results of the grid that it names.
        """
        rows = {row: self._with_tuned(row, split_words(f"rows.{row}", text)) for row, text in self.rows.items()}
        return rows | self._combinations()

    def _combinations(self) -> dict[str, list[str]]:
        return {
            f"{row} {number}": keys
            for row, text in self.grids.items()
            for number, keys in enumerate(alternatives(text), 1)
        }

    def label(self, row: str) -> str:
        """What people read for a row, or for a combination of a grid: the grid's name and its number."""
        if row in self.labels:
            return self.labels[row]
        grid, _, number = row.rpartition(" ")
        return f"{self.labels[grid]} {number}" if grid in self.labels else row

    def reference_row(self) -> str:
        """The row that the others are compared with."""
        return self.baseline or self.row_names()[0]

    def _with_tuned(self, row: str, words: list[str]) -> list[str]:
        """The words, each tuned=NAME replaced by what the grid NAME chose."""
        found = []
        for word in words:
            found += self._chosen(row, word.removeprefix(TUNED)) if word.startswith(TUNED) else [word]
        return found

    def _chosen(self, row: str, name: str) -> list[str]:
        if self.tuned is None:
            raise ConfigError("tuned", f"the results of an arena with grids, as rows.{row} asks for {name}", "null")
        path = user_path(self.tuned)
        stored = read_json(path)
        chosen = stored.get("chosen") if isinstance(stored, dict) else None
        if not isinstance(chosen, dict) or name not in chosen:
            raise ConfigError(f"rows.{row}", f"a grid of {path}", name)
        return list(chosen[name])


def split_words(where: str, text: str) -> list[str]:
    """The keys of a line, as a shell would part them.

    Raises:
        ConfigError: a quote that is not closed; `where` is named.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(where, "key=value key=value", f"{text} ({error})") from error


def alternatives(text: str) -> list[list[str]]:
    """Every combination of a grid: `a=1|2 b=3` is `a=1 b=3` and `a=2 b=3`."""
    choices = []
    for word in split_words("grids", text):
        name, equals, values = word.partition("=")
        choices.append([f"{name}{equals}{value}" for value in values.split("|")])
    return [list(combination) for combination in itertools.product(*choices)]


def decoding_keys(name: str, text: str) -> list[str]:
    """The keys of a decoding of the configuration."""
    shape = DECODING.fullmatch(name)
    assert shape is not None
    sizes = [f"rollout.block_size={shape[1]}", f"rollout.denoising_steps_per_block={shape[2]}"]
    return [*sizes, *split_words(f"decodings.{name}", text)]


def results_path(config: ArenaConfig) -> Path:
    """The file that holds an arena's figures."""
    return user_path(config.folder) / "results" / f"{config.name}.json"
