"""A launch that made other processes than were asked for is refused, not trained on."""

import os
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType

from t3d.config import TrainConfig, TrainingConfig
from t3d.errors import ConfigError
from t3d.training.launch import check_group, make_accelerator

ROOT = Path(__file__).parents[2]
LAUNCHERS_VARIABLES = (
    "WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_DEEPSPEED",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHERS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def config(**experiment: int) -> TrainConfig:
    made = TrainConfig()
    made.training.mixed_precision = "no"
    for name, value in experiment.items():
        setattr(made.experiment, name, value)
    return made


@pytest.mark.parametrize("experiment", [{"num_processes": 2}, {"num_node": 2}])
def test_a_launch_of_another_size_is_refused(experiment):
    [name] = experiment
    with pytest.raises(ConfigError, match=rf"experiment\.{name}: expected a launch .* 2 .*, found 1"):
        make_accelerator(config(**experiment))


def test_machines_are_those_that_the_launcher_counts(monkeypatch):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"experiment\.num_node: expected a launch on 1 machine\(s\), found 2"):
        make_accelerator(config())


@pytest.mark.parametrize("value", ["true", "1"])
def test_deepspeed_that_was_asked_for_and_does_not_run_is_refused(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_DEEPSPEED: expected .*, found a launch of type NO"):
        make_accelerator(config())


def test_deepspeed_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("t3d.training.launch.is_deepspeed_available", lambda: False)
    with pytest.raises(ConfigError, match=r"DeepSpeed installed \(pip install deepspeed\), found none"):
        make_accelerator(config())


class Noted(Accelerator):
    """accelerate's in a launch of two GPUs, where there are none."""

    def __init__(self, stage: int | None, **options: Any) -> None:
        kind = DistributedType.MULTI_GPU if stage is None else DistributedType.DEEPSPEED
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage, deepspeed_config={})
        self.options = options
        gpu = torch.device("cuda", 0)
        self.state = SimpleNamespace(deepspeed_plugin=plugin, distributed_type=kind, num_processes=2, device=gpu)
        self.gradient_state = SimpleNamespace(plugin_kwargs={})


@pytest.fixture
def on_gpus(monkeypatch):
    """Makes a launch of two GPUs, under a stage of ZeRO or none."""

    def begin(stage: int | None = None, **training: str) -> Noted:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("t3d.training.launch.Accelerator", partial(Noted, stage))
        made = config()
        for name, value in training.items():
            setattr(made.training, name, value)
        return make_accelerator(made)

    return begin


@pytest.mark.parametrize("stage", [None, 2])
def test_processes_on_gpus_wait_hours_for_each_other(on_gpus, stage):
    """The time-out is all that accelerate passes on beside its own choice of NCCL."""
    [handler] = on_gpus(stage).options["kwargs_handlers"]
    assert handler.to_kwargs() == {"timeout": timedelta(hours=4)}


@pytest.mark.parametrize(
    ("stage", "asked", "told"),
    [
        (1, "auto", {}),
        (2, "auto", {"grad_accum_dtype": "fp32"}),
        (3, "auto", {"grad_accum_dtype": "fp32"}),
        (1, "float32", {"grad_accum_dtype": "fp32"}),
        (3, "bfloat16", {"grad_accum_dtype": "bf16"}),
    ],
)
def test_deepspeed_is_told_in_which_precision_to_sum(on_gpus, stage, asked, told):
    made = on_gpus(stage, grad_accum_dtype=asked)
    assert made.state.deepspeed_plugin.deepspeed_config["data_types"] == told


def test_sums_in_bf16_need_deepspeed(on_gpus):
    with pytest.raises(
        ConfigError, match=r"grad_accum_dtype: expected auto or float32 without DeepSpeed, found bfloat16"
    ):
        on_gpus(None, grad_accum_dtype="bfloat16")


def test_sums_in_bf16_need_a_network_in_bf16():
    with pytest.raises(ConfigError, match=r"grad_accum_dtype: expected .* mixed_precision is bf16, found bfloat16"):
        TrainingConfig(grad_accum_dtype="bfloat16", mixed_precision="fp16")


def launch(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    command += [str(ROOT / "train/self_ddo_sdar_full.py"), f"config={ROOT / 'configs/toy/t3d.yaml'}"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["flags", "file"])
def test_a_launcher_that_starts_one_of_two_processes_is_caught(tmp_path, way):
    arguments = ["--cpu", "--num_processes", "2"]
    if way == "file":
        content = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_CPU",
            "num_machines": 1,
            "num_processes": 2,
            "machine_rank": 0,
            "use_cpu": True,
            "mixed_precision": "no",
        }
        (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
        arguments = ["--config_file", str(tmp_path / "two.yaml")]
    ended = launch(tmp_path, *arguments)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.stderr[-2000:]
    assert errors[0].startswith("error: experiment.num_processes: expected 1 if one process is meant")


CLIPPING = """
import sys
from t3d.config import TrainConfig, load_config
from t3d.training.launch import check_group, make_accelerator
needs = ["model.pretrained_model=x", "dataset.optimization_data=x", "training.mixed_precision=no"]
accelerator = make_accelerator(load_config(TrainConfig, [*needs, *sys.argv[1:]], "", ""))
settings = accelerator.state.deepspeed_plugin.deepspeed_config
sys.stdout.write(f"clipping {settings['gradient_clipping']}, throughput {settings['timers']['throughput']}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "limit"),
    [
        ("training.max_grad_norm=0", "0.0"),
        ("experiment.gradient_clipping=false", "0.0"),
        ("training.max_grad_norm=2", "2.0"),
    ],
)
def test_deepspeed_clips_as_the_configuration_says_whatever_the_launcher_does(tmp_path, argument, limit):
    (tmp_path / "clipping.py").write_text(CLIPPING)
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
    environment |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "1.0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "clipping.py"), argument]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = f"clipping {limit}, throughput {{'enabled': False}}"
    assert told in ended.stdout, ended.stderr[-2000:]


ENDS = """
import atexit
import sys
import torch.distributed as dist

atexit.register(lambda: print("left" if not dist.is_initialized() else "still there"))
from t3d.config import TrainConfig, load_config
from t3d.training.launch import check_group, make_accelerator

make_accelerator(load_config(TrainConfig, sys.argv[1:], "", ""))
print("joined" if dist.is_initialized() else "alone")
"""


def test_a_process_leaves_its_group_however_it_ends(tmp_path):
    """A group that is still there when the interpreter is taken down aborts the process now and then."""
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, str(script), "model.pretrained_model=x", "dataset.optimization_data=x"]
    environment = {**os.environ, **alone, "PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n")[-3:-1] == ["joined", "left"], ended.stderr


@pytest.mark.parametrize(
    ("environment", "has_gpu", "is_refused"),
    [
        ({"WORLD_SIZE": "2"}, False, True),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, False, True),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}, False, False),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, False, False),
        ({"WORLD_SIZE": "2"}, True, False),
        ({"WORLD_SIZE": "1"}, False, False),
    ],
)
def test_processes_that_would_each_train_alone_are_refused(environment, has_gpu: bool, is_refused: bool) -> None:
    expected = pytest.raises(ConfigError, match="ACCELERATE_USE_CPU: expected true in the environment")
    with expected if is_refused else nullcontext():
        check_group(environment, has_gpu)
