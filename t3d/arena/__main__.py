"""Arena: trains every row with every seed on one rollout, evaluates all alike, and writes one JSON file.

What is finished is kept under what it depends on: a killed arena goes on, and arenas in one folder share what is equal.
"""

from t3d.entry import run_entry

import logging
import os
import sys

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from t3d.arena.plan import Job, jobs, prepare
from t3d.arena.pool import run_each
from t3d.arena.results import ArenaResults, collect, has_record, save
from t3d.arena.settings import ArenaConfig
from t3d.arena.work import answer, work
from t3d.arena.worlds import problem_families
from t3d.config import load_config
from t3d.errors import DataError
from t3d.storage.folders import make_folder
from t3d.storage.paths import user_path

log = logging.getLogger(__name__)

EXAMPLE = "python -m t3d.arena config=toy/arena/methods seeds=[1,2] num_problems=100"


def run(config: ArenaConfig) -> ArenaResults:
    """Runs what is missing of an arena, and collects and saves its results.

    A student that fails is told of in a line, and the others go on; the next run tries it again.

    Raises:
        UserError: a mistake in the configuration, or a rollout that failed.
    """
    data = prepare(config)
    logs = user_path(config.folder) / "logs"
    if not data.answers.exists():
        log.info("the teacher answers %d problems", config.num_rollouts)
        for _, failure in run_each(answer, [(data, logs / f"{data.answers.parent.name}.log")], 1):
            if failure is not None:
                raise DataError(data.answers, "a rollout", failure)
    every, families = jobs(config, data), problem_families(data.evaluated, config.num_problems)
    missing = [number for number, job in enumerate(every) if not has_record(job)]
    log.info("%s: %d students, %d of them done", config.name, len(every), len(every) - len(missing))
    errors: dict[int, str] = {}
    tasks = [(every[number], logs / f"{every[number].record.stem}.log") for number in missing]
    with logging_redirect_tqdm(), tqdm(total=len(missing), desc=config.name, unit="student") as progress:
        for place, failure in run_each(work, tasks, config.processes):
            job = every[missing[place]]
            if failure is not None:
                errors[missing[place]] = failure
                log.warning("%s, seed %s: %s (%s)", job.row, job.seed, failure, tasks[place][1])
            progress.update()
            save(collect(config, every, errors, families))
    results = collect(config, every, errors, families)
    _link(config, every)
    log.info("%s", save(results))
    return results


def _link(config: ArenaConfig, every: list[Job]) -> None:
    """Makes the first seed's students known by their rows' names."""
    if config.links is None:
        return
    folder = make_folder(user_path(config.folder) / config.links)
    for job in every:
        if job.seed == config.seeds[0] and job.student.is_dir():
            link, run_folder = folder / job.row, job.student.parents[1]
            if link.is_symlink():
                link.unlink()
            if link.exists():
                raise DataError(link, "no folder of that name, or a link", "a folder")
            link.symlink_to(os.path.relpath(run_folder.resolve(), folder.resolve()))  # so that all of it can be moved


def main(arguments: list[str]) -> None:
    """Parses the configuration and runs the arena; status 1 where a student failed."""
    config = load_config(ArenaConfig, arguments, __doc__ or "", EXAMPLE)
    results = run(config)
    failed = sum(student.error is not None for student in results.students)
    if failed:
        log.warning("%d of %d students failed; the same command tries them again", failed, len(results.students))
        sys.exit(1)


if __name__ == "__main__":
    run_entry(main)
