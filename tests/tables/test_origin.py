"""A table refuses a checkpoint that is not what its row says, before anything is evaluated."""

import shutil
from pathlib import Path

import pytest
import yaml

from t3d.errors import CheckpointError, ConfigError
from t3d.tables.cells import plan

RECORDED = {
    "model.pretrained_model": "/models/small",
    "dataset.data_type": "math",
    "dataset.optimization_data": "data/small-MATH_train_renamed.json",
    "training.objective": "t3d",
    "training.lambda_path": None,
    "model.random_ratio": 0.1,
}


@pytest.fixture
def planned(settings, checkpoint, tmp_path):
    """Plans a table whose one trained row lies in a run with the given records."""

    def build(records: dict, *overrides: str):
        config: dict = {}
        for key, value in (RECORDED | records).items():
            group, _, name = key.partition(".")
            config.setdefault(group, {})[name] = value
        run = tmp_path / "small" / "math" / "t3d" / "20260101-000000"
        shutil.copytree(checkpoint, run / "ckpt" / "optimized")
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        return plan(
            settings(
                f"table.checkpoints={{ours: '{tmp_path}/{{base}}/{{data_type}}/t3d/ckpt/optimized'}}",
                "table.trained={ours: training.objective=t3d training.lambda_path=0.2 model.random_ratio=0.1}",
                "table.bases=[small]",
                "table.decodings=[[4, 2]]",
                *overrides,
            )
        )

    return build


def test_the_newest_run_of_the_method_fills_the_row(planned):
    (cell,) = planned({})
    assert Path(str(cell.config.evaluation.checkpoint_path)).parts[-3:] == ("20260101-000000", "ckpt", "optimized")


def test_the_weight_of_the_path_loss_may_be_written_out(planned):
    assert planned({"training.lambda_path": 0.2})


@pytest.mark.parametrize(
    ("objective", "key", "weight"),
    [("dparallel", "certainty_weight", 2), ("near_far", "soft_weight", 1), ("near_far", "lambda_path", 1)],
)
def test_no_weight_of_a_term_is_the_objectives_own(planned, objective, key, weight):
    recorded = {"training.objective": objective, f"training.{key}": None}
    assert planned(recorded, f"table.trained={{ours: training.objective={objective} training.{key}={weight}}}")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({"model.pretrained_model": "t3d/toy/teacher"}, "model.pretrained_model: expected small, found teacher"),
        ({"dataset.data_type": "code"}, "dataset.data_type: expected math, found code"),
        ({"training.objective": "td"}, "training.objective: expected t3d, found td"),
        ({"training.lambda_path": 0.05}, "training.lambda_path: expected 0.2, found 0.05"),
        ({"model.random_ratio": 0}, "model.random_ratio: expected 0.1, found 0"),
        ({"model.random_ratio": None}, "model.random_ratio: expected 0.1, found None"),
    ],
)
def test_another_run_is_refused_by_name(planned, tmp_path, records, said):
    with pytest.raises(CheckpointError) as caught:
        planned(records)
    source = tmp_path / "small" / "math" / "t3d" / "20260101-000000" / "config.yaml"
    assert str(caught.value) == f"table.checkpoints.ours, {source}, {said}"


def test_the_rollouts_of_another_base_of_the_table_are_refused(planned):
    with pytest.raises(CheckpointError, match=r"optimization_data: expected no other model's rollouts than small's"):
        planned(
            {"dataset.optimization_data": "large-MATH_train_renamed"},
            "table.bases=[small, large]",
            "table.sections=[base]",
            "table.skip_missing=true",
        )


def test_a_path_without_base_and_kind_is_the_users_word(planned, tmp_path):
    path = tmp_path / "small/math/t3d/ckpt/optimized"
    records = {"model.pretrained_model": "another", "dataset.data_type": "code"}
    assert planned(records, f"table.checkpoints={{ours: {path}}}")


@pytest.mark.parametrize("trained", ["{theirs: a=b}", "{ours: objective}", "{ours: training.objective=}"])
def test_what_a_row_was_trained_with_is_given_by_key_and_value(planned, trained):
    with pytest.raises(ConfigError, match=r"table\.trained: expected key=value key=value for a row"):
        planned({}, f"table.trained={trained}")
