import logging

from t3d.config import TrainConfig, load_config
from t3d.training.loop import train


def test_training_on_problems_of_a_test_split_is_told(checkpoint, trajectories, tmp_path, caplog):
    data = tmp_path / "SDAR-MATH_train_renamed.json"
    data.write_bytes(trajectories.read_bytes())
    arguments = [
        f"model.pretrained_model={checkpoint}",
        f"dataset.optimization_data={data}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.max_steps=1",
        "training.gradient_accumulation_steps=1",
        "training.mixed_precision=no",
    ]
    with caplog.at_level(logging.WARNING, "t3d"):
        train(load_config(TrainConfig, arguments, "", ""))
    assert "2936 of the 8523 problems of MATH_train are in the MATH test split" in caplog.text
