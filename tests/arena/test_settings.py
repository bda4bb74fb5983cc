from pathlib import Path

import pytest

from t3d.arena.plan import jobs, prepare
from t3d.arena.settings import ArenaConfig, alternatives, decoding_keys
from t3d.config import load_config
from t3d.errors import CheckpointError, ConfigError, UserError
from t3d.storage.files import write_json_atomic

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "configs/toy/arena").glob("*.yaml") if "\nname: " in path.read_text())


def arena(tmp_path, *words: str, **changes: object) -> ArenaConfig:
    given = {"name": "a", "folder": str(tmp_path), "num_rollouts": 4, "decodings": {"4/2": ""}, "seeds": [1, 2]}
    return ArenaConfig(**(given | {"rows": {"original": "", "td": "config=toy/td"}} | changes))


def planned(config: ArenaConfig):
    data = prepare(config)
    data.answers.parent.mkdir(parents=True, exist_ok=True)
    data.answers.write_text(str(data.answers))  # what the rollout would give: others from others
    return jobs(config, data)


def test_a_grid_is_every_combination_of_its_alternatives():
    assert alternatives("config=toy/td a=1|2 b=x|y") == [
        ["config=toy/td", f"a={a}", f"b={b}"] for a in "12" for b in "xy"
    ]


def test_a_decodings_name_is_its_sizes():
    assert decoding_keys("8/4", "") == ["rollout.block_size=8", "rollout.denoising_steps_per_block=4"]
    assert decoding_keys("4/4 raw 0.9", "rollout.confidence=raw")[2:] == ["rollout.confidence=raw"]


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("rows, grids", {"rows": {}}),
        ("rows, grids", {"grids": {"td": "a=1|2"}}),
        ("grids", {"rows": {}, "grids": {"td": "a=1|2", "t3d": "a=1"}}),
        ("seeds", {"seeds": [1, 1]}),
        ("decodings", {"decodings": {}}),
        ("decodings", {"decodings": {"4/8": ""}}),
        ("decodings", {"decodings": {"fast": ""}}),
        ("few_step", {"few_step": ["8/8"]}),
        ("labels", {"labels": {"ddo": "DDO"}}),
        ("baseline", {"baseline": "ddo"}),
        ("contrasts", {"contrasts": {"td": ["ddo"]}}),
    ],
)
def test_names_that_do_not_fit_are_the_users_mistake(tmp_path, key, changes):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        arena(tmp_path, **changes)


def test_tuned_words_are_what_the_grid_chose(tmp_path):
    results = tmp_path / "tuning.json"
    write_json_atomic(results, {"chosen": {"td": ["config=toy/td", "model.random_ratio=0.1"]}})
    config = arena(tmp_path, rows={"td": "tuned=td training.max_steps=3"}, tuned=str(results))
    assert config.students() == {"td": ["config=toy/td", "model.random_ratio=0.1", "training.max_steps=3"]}
    for changes in ({"tuned": None}, {"rows": {"ddo": "tuned=ddo"}, "tuned": str(results)}):
        with pytest.raises(ConfigError):
            arena(tmp_path, **({"rows": {"td": "tuned=td"}} | changes)).students()
    elsewhere = arena(tmp_path, rows={"td": "tuned=td"}, tuned="gone.json")
    assert elsewhere.row_names() == ["td"], "a page is made of results where the grid's are not"


class TestPlan:
    def test_every_row_has_every_seed_and_the_teacher_one_job(self, tmp_path):
        found = [(job.row, job.seed) for job in planned(arena(tmp_path))]
        assert found == [("original", None), ("td", 1), ("td", 2)]

    def test_a_student_is_known_by_all_that_its_weights_depend_on_and_nothing_else(self, tmp_path):
        def student(**changes: object) -> Path:
            return planned(arena(tmp_path, **({"seeds": [1]} | changes)))[1].student

        same = student()
        assert student(name="b", decodings={"8/2": ""}, num_problems=3, processes=1) == same
        assert student(rows={"original": "", "other": "config=toy/td"}) == same
        assert student(common="experiment.save_every_steps=7") == same
        others = [
            student(seeds=[2]),
            student(common="training.max_steps=3"),
            student(rows={"original": "", "td": "config=toy/td training.certainty_weight=2"}),
            student(rollout="config=toy/sdar_sample rollout.temperature=0.7"),
            student(num_rollouts=5),
        ]
        assert len({same, *others}) == 6

    def test_a_record_is_known_by_what_is_evaluated_too(self, tmp_path):
        def record(**changes: object) -> Path:
            return planned(arena(tmp_path, **({"seeds": [1]} | changes)))[1].record

        same = record()
        assert record(name="b", common="", rows={"original": "", "x": "config=toy/td"}) == same
        others = [record(decodings={"4/1": ""}), record(num_problems=3), record(split="validation")]
        assert len({same, *others}) == 4

    def test_solutions_are_trained_on_where_a_row_says_so(self, tmp_path):
        rows = {"sft": "config=toy/sft dataset.optimization_data={solutions}"}
        job = planned(arena(tmp_path, rows=rows))[0]
        assert job.train is not None
        assert job.train.dataset.optimization_data.endswith("TinyMath_train_4_solutions.json")

    def test_a_teacher_that_is_not_there_is_told_of(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere"):
            prepare(arena(tmp_path, teacher=str(tmp_path / "nowhere")))

    @pytest.mark.parametrize(
        ("where", "changes"),
        [
            ("common: expected seeds and teacher from", {"common": "training.seed=3"}),
            ("common: expected key=value key=value, found 'a .No closing", {"common": "'a"}),
            ("rows.td: expected key=value key=value", {"rows": {"td": "config=toy/td 'x"}}),
            ("rollout: expected key=value key=value", {"rollout": "'"}),
            ("evaluation: expected key=value key=value", {"evaluation": "config=toy/eval '"}),
            ("decodings.4/1: expected key=value key=value", {"decodings": {"4/1": "'"}}),
            (
                "decodings.4/1: expected rollout.num_response_per_task=1.*found 2",
                {"decodings": {"4/1": "rollout.num_response_per_task=2"}},
            ),
        ],
    )
    def test_the_key_that_holds_a_mistake_is_named(self, tmp_path, where, changes):
        with pytest.raises(ConfigError, match=f"^{where}"):
            planned(arena(tmp_path, **changes))

    @pytest.mark.parametrize("keys", ["training.seed=3", "model.pretrained_model=x", "training.nothing=1"])
    def test_keys_that_are_not_a_rows_are_refused_before_any_work(self, tmp_path, keys):
        with pytest.raises(UserError, match=keys.partition("=")[0] if "nothing" in keys else "rows.td"):
            planned(arena(tmp_path, rows={"td": f"config=toy/td {keys}"}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_arenas_that_come_with_t3d_can_be_planned(path, tmp_path, monkeypatch):
    if path.stem == "world":
        pytest.importorskip("reasoning_gym")
    monkeypatch.chdir(tmp_path)
    write_json_atomic(tmp_path / "chosen.json", {"chosen": {name: ["config=toy/td"] for name in TUNED}})
    keys = [f"config={path}", f"folder={tmp_path}", "num_rollouts=2", "seeds=[1]"]
    bundled = ["teacher=t3d/toy/teacher"]  # in place of one that another command makes
    keys += {"tuned": ["tuned=chosen.json"], **dict.fromkeys(("vocabulary", "round2", "world"), bundled)}.get(
        path.stem, []
    )
    config = load_config(ArenaConfig, keys, "", "")
    names = config.students()
    assert [job.row for job in planned(config)] == [*names]


TUNED = load_config(ArenaConfig, ["config=toy/arena/tuning"], "", "").grids
