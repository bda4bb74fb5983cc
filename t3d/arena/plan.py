"""The jobs of an arena: a student (a row with a seed) and its evaluations, kept under what they depend on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from t3d.arena.settings import ArenaConfig, decoding_keys, split_words
from t3d.arena.worlds import evaluated_problems, train_problems, worked_solutions
from t3d.config import EvalConfig, SampleConfig, TrainConfig, load_config
from t3d.errors import ConfigError
from t3d.evaluation.environment import versions
from t3d.sdar.checkpoint import resolve_checkpoint
from t3d.storage.fingerprint import file_digest, model_digest, text_digest
from t3d.storage.paths import dataset_name, find_data, user_path
from t3d.tables.cells import Cell

DATA = "dataset.optimization_data"
ONLY_PLACES = ("output_dir", "project", "save_every_steps", "checkpoints_total_limit", "resume_from", "trackers")
"""Keys of `experiment` that the weights do not depend on."""
STUDENT = "student"


@dataclass(frozen=True)
class Data:
    """The files of an arena.

    Attributes:
        evaluated: problems to evaluate.
        solutions: worked solutions of the train problems.
        rollout: how the teacher's answers to them are decoded.
        answers: the file of these answers that training reads; `work.answer` writes it.
        common: what every figure depends on: the teacher's digest and versions of packages.
    """

    evaluated: Path
    solutions: Path
    rollout: SampleConfig
    answers: Path
    common: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one process does: train a student, if it is not there, and evaluate it.

    Attributes:
        row: of the arena.
        seed: of training; None: the teacher, which is evaluated as it is.
        keys: of its training.
        train: how it is trained.
        student: its checkpoint.
        cells: its evaluations by the names of their decodings.
        folder: where evaluations lie.
        record: the file that holds its figures once all this is done.
    """

    row: str
    seed: int | None
    keys: list[str]
    train: TrainConfig | None
    student: Path
    cells: dict[str, Cell]
    folder: Path
    record: Path


def prepare(config: ArenaConfig) -> Data:
    """Writes the problems, and says where the rollout goes.

    Raises:
        UserError: the rollout's keys, or no teacher.
    """
    common = _common(config)
    folder = user_path(config.folder)
    problems = train_problems(config.world, config.num_rollouts, folder / "data")
    keys = [*split_words("rollout", config.rollout), f"evaluation.checkpoint_path={config.teacher}"]
    rollout = load_config(SampleConfig, [*keys, f"evaluation.eval_dataset={problems}"], "", "")
    settings = asdict(rollout)
    del settings["experiment"], settings["evaluation"]["eval_dataset"], settings["evaluation"]["checkpoint_path"]
    digest = text_digest({"settings": settings, "problems": _file_digest(problems), **common})
    place = folder / "rollouts" / digest
    rollout = replace(rollout, experiment=replace(rollout.experiment, output_dir=str(place)))
    return Data(
        evaluated_problems(config.world, config.split, folder / "data"),
        worked_solutions(config.world, config.num_rollouts, folder / "data"),
        rollout,
        place / f"teacher-{dataset_name(str(problems))}_renamed.json",
        common,
    )


def jobs(config: ArenaConfig, data: Data) -> list[Job]:
    """Every student of an arena, checked before any work, in the order of seeds: a part of it is a whole arena.

    Raises:
        UserError: a row's keys, or a decoding's.
    """
    students, evaluations = config.students(), _evaluations(config, data)
    teacher = resolve_checkpoint(config.teacher)
    found = []
    for place, seed in enumerate(config.seeds):
        for row, keys in students.items():
            if keys:
                found.append(_student(config, data, evaluations, row, seed, keys))
            elif place == 0:
                found.append(_job(config, data, evaluations, row, None, [], None, teacher, {}))
    return found


def _student(
    config: ArenaConfig, data: Data, evaluations: Mapping[str, EvalConfig], row: str, seed: int, keys: list[str]
) -> Job:
    common = split_words("common", config.common)
    words = [word.replace("{solutions}", str(data.solutions)) for word in (*common, *keys)]
    if not any(word.startswith(f"{DATA}=") for word in words):
        words.append(f"{DATA}={data.answers}")
    if bad := [word for word in words if word.startswith(("training.seed=", "model.pretrained_model="))]:
        raise ConfigError(
            "common" if bad[0] in common else f"rows.{row}", "seeds and teacher from the arena's own keys", bad[0]
        )
    words += [f"training.seed={seed}", f"model.pretrained_model={config.teacher}", f"model.optimized_name={STUDENT}"]
    words += ["experiment.resume_from=latest"]
    train = load_config(TrainConfig, words, "", "")
    settings = asdict(train)
    file = find_data(settings["dataset"].pop("optimization_data"))
    del settings["model"]["pretrained_model"], settings["wandb"], settings["training"]["meter_every"]
    settings["experiment"] = {name: value for name, value in settings["experiment"].items() if name not in ONLY_PLACES}
    inputs = {"settings": settings, "data": _file_digest(file), **data.common}
    place = user_path(config.folder) / "students" / text_digest(inputs)
    train = replace(train, experiment=replace(train.experiment, output_dir=str(place)))
    return _job(config, data, evaluations, row, seed, keys, train, place / "ckpt" / STUDENT, inputs)


def _job(
    config: ArenaConfig,
    data: Data,
    evaluations: Mapping[str, EvalConfig],
    row: str,
    seed: int | None,
    keys: list[str],
    train: TrainConfig | None,
    student: Path,
    inputs: Mapping[str, Any],
) -> Job:
    folder = user_path(config.folder)
    cells = {name: _cell(evaluation, student) for name, evaluation in evaluations.items()}
    settings = {name: [asdict(each.rollout), asdict(each.execute)] for name, each in evaluations.items()}
    evaluated = {"problems": _file_digest(data.evaluated), "limit": config.num_problems, "decodings": settings}
    digest = text_digest({"student": inputs, "evaluated": evaluated, **data.common})
    return Job(row, seed, keys, train, student, cells, folder, folder / "records" / f"{digest}.json")


def _evaluations(config: ArenaConfig, data: Data) -> dict[str, EvalConfig]:
    """The evaluation of each decoding, of a model yet to be named."""
    shared = [f"evaluation.eval_dataset={data.evaluated}", f"evaluation.limit={config.num_problems}"]
    keys, found = split_words("evaluation", config.evaluation), {}
    for name, text in config.decodings.items():
        found[name] = load_config(EvalConfig, [*keys, *decoding_keys(name, text), *shared], "", "")
        if (count := found[name].rollout.num_response_per_task) != 1:
            raise ConfigError(f"decodings.{name}", "rollout.num_response_per_task=1: a grade for each problem", count)
    return found


def _cell(evaluation: EvalConfig, student: Path) -> Cell:
    decoding = evaluation.rollout
    place = {"block_size": decoding.block_size, "denoising_steps": decoding.denoising_steps_per_block}
    of_student = replace(evaluation.evaluation, checkpoint_path=str(student))
    return Cell(place, replace(evaluation, evaluation=of_student))


def _common(config: ArenaConfig) -> dict[str, Any]:
    """What every figure depends on."""
    teacher = model_digest(resolve_checkpoint(config.teacher))
    return {"teacher": teacher, "versions": versions()}


def _file_digest(path: Path) -> str:
    return _digest_at(path, path.stat().st_mtime_ns)


@cache
def _digest_at(path: Path, _changed_ns: int) -> str:
    """The digest of a file that many students share, read once."""
    return file_digest(path)[:16]
