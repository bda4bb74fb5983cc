import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from t3d.config import TrainConfig
from t3d.training.fsdp import plugin_of

FOLDER = Path(__file__).parents[1] / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
NAME = re.compile(r"(?P<nodes>\d+)_node_(?P<gpus>\d+)_gpus(?:_deepspeed_zero(?P<stage>[123])|_(?P<fsdp>fsdp2))?")


def test_the_names_that_people_use_are_there():
    names = {path.stem for path in FILES}
    assert {f"1_node_{gpus}_gpus_deepspeed_zero{stage}" for gpus in (1, 2, 4, 8) for stage in (1, 2, 3)} <= names
    assert {f"{nodes}_node_8_gpus_deepspeed_zero{stage}" for nodes in (2, 4, 8) for stage in (1, 3)} <= names
    assert {f"{nodes}_fsdp2" for nodes in ("1_node_2_gpus", "1_node_4_gpus", "1_node_8_gpus")} <= names
    assert {f"{nodes}_node_8_gpus_fsdp2" for nodes in (2, 4, 8)} <= names
    assert "1_node_6_gpus_deepspeed_zero1" in names
    assert "cpu" in names


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "cpu"], ids=lambda path: path.stem)
def test_a_file_does_what_its_name_says(path):
    content = yaml.safe_load(path.read_text())
    name = NAME.fullmatch(path.stem)
    assert name is not None
    nodes, gpus, stage = int(name["nodes"]), int(name["gpus"]), name["stage"]
    assert content["num_machines"] == nodes
    assert content["num_processes"] == nodes * gpus
    assert content["mixed_precision"] == "bf16"
    assert content["use_cpu"] is False
    if name["fsdp"]:
        assert content["distributed_type"] == "FSDP"
        assert content["fsdp_config"]["fsdp_version"] == 2
    elif stage is None:
        assert content["distributed_type"] == "MULTI_GPU"
        assert "deepspeed_config" not in content
    else:
        assert content["distributed_type"] == "DEEPSPEED"
        assert content["deepspeed_config"]["zero_stage"] == int(stage)
        assert content["deepspeed_config"]["offload_optimizer_device"] == "none"
        if stage == "3":
            assert content["deepspeed_config"]["zero3_save_16bit_model"] is True


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_fsdp2.yaml")), ids=lambda path: path.stem)
def test_what_accelerate_launch_makes_of_an_fsdp2_file_trains_here(path, monkeypatch):
    """The launcher's own variables, put where the run reads them."""
    asked = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    asked, *_ = _validate_launch_command(asked)
    for name, value in prepare_multi_gpu_env(asked).items():
        if "FSDP" in name:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")  # by torchrun, which it starts
    assert plugin_of(TrainConfig()).reshard_after_forward is True


def test_the_cpu_file_needs_no_accelerator():
    content = yaml.safe_load((FOLDER / "cpu.yaml").read_text())
    assert content["use_cpu"] is True
    assert content["mixed_precision"] == "no"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_file_as_its_own(path):
    loaded = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert loaded.num_processes == content["num_processes"]
    assert loaded.distributed_type == content["distributed_type"]
    if loaded.distributed_type == "DEEPSPEED":
        assert loaded.deepspeed_config == content["deepspeed_config"]


def test_files_of_one_kind_differ_only_in_what_their_names_say():
    kinds: dict[tuple[bool, str | None], list[dict]] = {}
    for path in FILES:
        if name := NAME.fullmatch(path.stem):
            content = yaml.safe_load(path.read_text())
            for counted in ("num_machines", "num_processes"):
                content.pop(counted)
            kinds.setdefault((name["nodes"] == "1", name["fsdp"] or name["stage"]), []).append(content)
    several = {(False, "1"), (False, "3"), (False, "fsdp2")}
    assert set(kinds) == {(True, None), (True, "1"), (True, "2"), (True, "3"), (True, "fsdp2")} | several
    for contents in kinds.values():
        assert all(content == contents[0] for content in contents)
