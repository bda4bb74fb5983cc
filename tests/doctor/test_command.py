"""Whole examinations of good and bad commands."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from t3d.config import TrainConfig, load_config
from t3d.devices import GIB
from t3d.doctor import machine
from t3d.doctor.__main__ import main
from t3d.doctor.command import dry_run, examine, kind_of
from t3d.doctor.finding import Finding
from t3d.doctor.machine import Device
from t3d.doctor.training import launch_of, memory
from t3d.errors import ConfigError, UserError
from t3d.sdar.checkpoint import load_model_config
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.opening import open_checkpoint
from t3d.storage.paths import find_data_files
from t3d.toy.problems import generate
from t3d.training.data import load_samples
from t3d.training.lora import num_adapter_parameters
from t3d.training.memory import RESERVE, SHAPES, estimate_fsdp2

CONFIG = Path(__file__).parents[2] / "configs" / "t3d.yaml"


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """The machine itself is examined elsewhere, and is the same in every test."""
    host = Device("cpu", "CPU", None, 16 * GIB, 14 * GIB, 24 * GIB)
    monkeypatch.setattr("t3d.doctor.command._machine", lambda _examination, _kind: None)
    monkeypatch.setattr(machine, "find_devices", lambda: [host])
    for variable in ("WORLD_SIZE", "RANK", "ACCELERATE_USE_CPU", "GROUP_WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def decoding(checkpoint, dataset, tmp_path) -> Callable[..., list[str]]:
    """Builds the arguments of a rollout."""

    def build(*overrides: str, **files: Path) -> list[str]:
        return [
            f"experiment.project={tmp_path / 'project'}",
            f"evaluation.checkpoint_path={files.get('model', checkpoint)}",
            f"evaluation.eval_dataset={files.get('data', dataset)}",
            "rollout.max_token=14",
            "rollout.device=cpu",
            *overrides,
        ]

    return build


@pytest.fixture
def training(checkpoint, tmp_path) -> Callable[..., list[str]]:
    """Builds the arguments of a training run on real answers."""
    data = tmp_path / "answers.json"
    data.write_text(json.dumps(list(itertools.islice(generate("train"), 6))))

    def build(*overrides: str, model: Path = checkpoint) -> list[str]:
        return [
            f"experiment.output_dir={tmp_path / 'run'}",
            f"model.pretrained_model={model}",
            f"dataset.optimization_data={data}",
            "training.objective=sft",
            "training.mixed_precision=no",
            "training.max_gen_length=64",
            *overrides,
        ]

    return build


def findings(kind: str, arguments: list[str]) -> dict[str, list[Finding]]:
    """What is found of a command, by subject."""
    found: dict[str, list[Finding]] = {}
    for finding in examine(kind, arguments).findings:
        found.setdefault(finding.subject, []).append(finding)
    return found


def errors(kind: str, arguments: list[str]) -> dict[str, str]:
    """Subject and text of every error."""
    return {finding.subject: finding.text for finding in examine(kind, arguments).findings if finding.level == "error"}


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint, to be broken."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("kind", ["sample", "eval"])
def test_a_good_rollout_is_all_ok_and_writes_nothing(kind, decoding, tmp_path):
    found = findings(kind, decoding())
    assert {finding.level for group in found.values() for finding in group} == {"ok"}
    expected = {"checkpoint", "tokenizer", "problems", "output", "kernel", "memory", "rehearsal"}
    assert found.keys() == expected | ({"sandbox"} if kind == "eval" else set())
    assert "10, longest prompt" in found["problems"][0].text
    assert "all 10 fit" in found["memory"][0].text
    assert list(tmp_path.iterdir()) == []


def test_recorded_forwards_are_refused_where_the_command_would(decoding):
    [wrong] = [
        one for one in findings("sample", decoding("rollout.cuda_graphs=true"))["kernel"] if one.level == "error"
    ]
    assert wrong.text == "rollout.cuda_graphs: True"
    assert "null or false on cpu with torch's scaled_dot_product_attention" in str(wrong.cure)


def test_a_rollout_through_drafts_is_examined_with_its_student(decoding, copied):
    def needed(*overrides: str) -> str:
        found = findings("sample", decoding(*overrides))
        assert {finding.level for group in found.values() for finding in group} == {"ok"}
        assert len(found["checkpoint"]) == 1 + any("copy" in override for override in overrides)
        return found["memory"][0].text

    assert len({needed(), needed("rollout.draft=self"), needed(f"rollout.draft={copied}")}) == 3
    change(copied / "config.json", block_size=8)
    assert errors("sample", decoding(f"rollout.draft={copied}")) == {"draft": f"rollout.draft, {copied}: 8"}


def test_prompts_are_those_that_the_command_asks(decoding):
    def longest(*overrides: str) -> int:
        return int(findings("sample", decoding(*overrides))["problems"][0].text.split()[-2])

    words = "evaluation.prompts.math='{problem} " + "one " * 30 + "'"
    assert longest(words) > longest() + 20


def test_a_good_training_run_is_all_ok_and_writes_nothing(training, tmp_path):
    before = list(tmp_path.rglob("*"))
    found = findings("train", training())
    assert {finding.level for group in found.values() for finding in group} == {"ok"}
    expected = {"launch", "checkpoint", "tokenizer", "data", "output", "memory", "kernel", "rehearsal"}
    assert found.keys() == expected
    assert "6 records, 6 samples" in found["data"][0].text
    assert list(tmp_path.rglob("*")) == before


def test_the_problems_that_validate_are_looked_at_before_training_starts(training, dataset, tmp_path):
    keys = ["validation.every=5", f"validation.dataset={dataset}"]
    first, second = findings("train", training(*keys))["validation"]
    assert (first.level, second.level) == ("ok", "ok")
    assert first.text.startswith(f"at 4/2, {dataset}: 10, longest prompt")
    assert second.text.startswith("at 4/1, ")
    bad = tmp_path / "bad.json"
    bad.write_text('[{"question": "1 + 1"}]')
    assert "bad.json, record 0" in errors("train", training(*keys, f"validation.dataset={bad}"))["validation"]
    too_long = errors("train", training(*keys, "validation.max_token=5000"))
    assert "too long" in too_long["validation"]
    metered = ["training.meter_every=5", f"validation.dataset={dataset}"]
    assert [one.level for one in findings("train", training(*metered))["validation"]] == ["ok", "ok"]


@pytest.mark.parametrize("objective", ["t3d", "ddo", "dparallel"])
def test_every_kind_of_loss_is_rehearsed(training, objective):
    (rehearsed,) = findings("train", training(f"training.objective={objective}"))["rehearsal"]
    assert rehearsed.level == "ok"
    assert f"{objective} in no: forward and backward" in rehearsed.text


def test_texts_are_counted_as_they_are_cut(training, tmp_path):
    data = tmp_path / "texts.json"
    data.write_text(json.dumps([{"text": "One and two. " * 40}, {"text": "One."}]))
    keys = training(f"dataset.optimization_data={data}")
    found = findings("train", keys)["data"][0].text
    samples = train_samples(keys)
    assert samples > 2
    assert f"2 records, {samples} samples, longest prompt 0 tokens" in found
    assert "one block of a text" in str(findings("train", [*keys, "training.max_gen_length=7"])["data"][0].cure)


def train_samples(keys: list[str]) -> int:
    config = load_config(TrainConfig, keys, "", "")
    checkpoint = open_checkpoint(config.model.pretrained_model, 8)
    files, size = find_data_files(config.dataset.optimization_data), checkpoint.config.vocab_size
    return len(load_samples(files, checkpoint.tokenizer, config.dataset, config.training, size, needs_step_map=False))


def test_an_adapter_is_rehearsed_and_saves_less(training, checkpoint):
    def said(*overrides: str) -> tuple[float, str]:
        found = findings("train", training("training.objective=t3d", "training.mask_strategy=random", *overrides))
        assert {finding.level for group in found.values() for finding in group} == {"ok"}
        [save] = re.findall(r"save of ([\d.]+) MiB", found["output"][0].text)
        return float(save), found["rehearsal"][0].text

    whole, rehearsed = said()
    assert "LoRA" not in rehearsed
    assert whole == pytest.approx(20 * 69_792 / 2**20, abs=0.06)
    less, rehearsed = said("model.lora_rank=8")
    assert "t3d in no, LoRA of rank 8" in rehearsed
    config = load_config(TrainConfig, training("model.lora_rank=8"), "", "")
    adapter = num_adapter_parameters(load_model_config(checkpoint), config.model)
    assert less == pytest.approx((4 * 69_792 + 20 * adapter) / 2**20, abs=0.06)


def test_a_missing_checkpoint_is_named_and_the_rest_is_examined(decoding, tmp_path):
    found = findings("sample", decoding(model=tmp_path / "nowhere"))
    assert found["checkpoint"][0].level == "error"
    assert "no such folder" in found["checkpoint"][0].text
    assert found["problems"][0].level == "ok"


def test_a_model_still_on_the_hub_is_a_warning_and_counted_by_its_known_shape(decoding, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    found = findings("sample", decoding(model=Path("JetLM/SDAR-4B-Chat")))
    assert found["checkpoint"][0].level == "warning"
    assert "4,411,424,256 parameters" in found["checkpoint"][0].text
    assert found["memory"][0].level == "ok"


def test_the_home_of_nobody_is_a_folder_that_is_missing(decoding):
    assert "no such folder" in errors("sample", decoding(model=Path("~nobody.at.all/x")))["checkpoint"]


def test_a_model_of_another_type_is_refused(decoding, copied):
    change(copied / "config.json", model_type="qwen3_moe")
    assert "qwen3_moe" in errors("sample", decoding(model=copied))["checkpoint"]


def test_a_mask_that_the_tokenizer_contradicts_is_refused(decoding, copied):
    change(copied / "config.json", mask_token_id=7)
    assert errors("sample", decoding(model=copied))["checkpoint"].endswith("mask_token_id: 7")


def test_a_configuration_that_is_no_json_is_refused(decoding, training, copied):
    (copied / "config.json").write_text("{")
    assert "config.json" in errors("sample", decoding(model=copied))["checkpoint"]
    assert "config.json" in errors("train", training(model=copied))["checkpoint"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "neither model.safetensors nor model.safetensors.index.json"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "model.safetensors, which is not whole ("),
        (lambda path: save_file({"other": load_file(path)["model.norm.weight"]}, path), "nothing in the weights"),
    ],
)
def test_weights_that_are_not_the_models_are_named(decoding, copied, spoil, said):
    spoil(copied / "model.safetensors")
    assert said in errors("sample", decoding(model=copied))["checkpoint"]


def test_a_shard_that_is_missing_is_named(decoding, copied):
    (copied / "model.safetensors").rename(copied / "model-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    said = errors("sample", decoding(model=copied))["checkpoint"]
    assert "1 of 2 files of weights missing, such as model-00001.safetensors" in said


def test_a_bad_record_is_named(decoding, training, dataset, tmp_path):
    records = json.loads(dataset.read_text())
    del records[3]["question"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(records))
    assert "record 3, field question" in errors("sample", decoding(data=path))["problems"]
    assert f"{path}, record 0" in errors("train", training(f"dataset.optimization_data={path}"))["data"]


def test_data_without_steps_is_an_error_for_an_objective_that_needs_them(training):
    assert "a record without step_map" in errors("train", training("training.objective=t3d"))["data"]


def test_data_that_is_missing_is_an_error(decoding, training):
    assert errors("sample", decoding(data=Path("Nowhere"))).keys() == {"problems"}
    assert errors("train", training("dataset.optimization_data=Nowhere")).keys() == {"data"}


def test_prompts_too_long_for_the_model_are_an_error_where_all_are(decoding):
    assert "10 too long" in errors("sample", decoding("rollout.max_token=4000"))["problems"]


def test_memory_for_not_one_sequence_is_an_error_and_for_some_is_told(decoding, training, monkeypatch):
    def room(size: float) -> None:
        tiny = Device("cpu", "CPU", None, int(size), int(size), 24 * GIB)
        monkeypatch.setattr(machine, "find_devices", lambda: [tiny])

    room(1 << 20)
    assert "not one fits" in errors("sample", decoding())["memory"]
    assert errors("train", training()).keys() >= {"memory"}
    room(2.4 * 2**20)
    (finding,) = findings("sample", decoding())["memory"]
    assert finding.level == "ok"
    assert " of 10 at a time fit into " in finding.text
    (finding,) = findings("sample", decoding("rollout.paged=true"))["memory"]
    assert re.search(
        r"and pages of keys and values, \d+ of .* for 256 tokens each \(the longest sequence takes 1\):", finding.text
    )


def test_an_output_folder_that_is_a_file_is_an_error(decoding, training, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in errors("sample", decoding(f"experiment.output_dir={tmp_path / 'file'}"))["output"]
    assert "is a file" in errors("train", training(f"experiment.output_dir={tmp_path / 'file' / 'run'}"))["output"]


def test_a_rollout_file_that_is_there_is_told(decoding, tmp_path):
    path = tmp_path / "project" / "temp_data" / "outputs-eval-checkpoint-TinyMath.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    (finding,) = findings("sample", decoding())["output"]
    assert finding.level == "ok"
    assert "outputs-eval-checkpoint-TinyMath.json is there: kept if nothing differs, else renamed" in finding.text


def test_a_folder_with_another_run_is_an_error(training, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("experiment: {}\n")
    assert "the run in" in errors("train", training())["output"]


def test_an_unknown_key_is_an_error_on_the_page(decoding):
    assert errors("sample", decoding("rollout.blok_size=4")) == {
        "settings": "command line: rollout.blok_size: an unknown one"
    }


def test_a_launch_of_another_size_is_an_error(training, monkeypatch):
    asked = training("experiment.num_processes=8")
    assert "num_processes asks for 8" in errors("train", asked)["launch"]
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    (finding,) = findings("train", asked)["launch"]
    assert finding.level == "ok"
    assert "8 processes on 1 machine, ZeRO-2; 256 samples per update" in finding.text


def test_the_batch_of_the_launch_is_the_configurations(training, monkeypatch):
    asked = training("training.global_batch_size=96")
    (finding,) = findings("train", asked)["launch"]
    assert "96 samples per update (1 x 96 x 1)" in finding.text
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert "expected a multiple of 5" in str(findings("train", asked)["launch"])


def test_stages_that_fit_eight_gpus_are_named():
    cards = [Device(f"cuda:{index}", "A100", (8, 0), 39 * GIB, 37 * GIB, 40 * GIB) for index in range(8)]
    config = load_config(TrainConfig, [f"config={CONFIG}"], "", "")
    shape = SDARConfig(**SHAPES["SDAR-4B-Chat"])
    around = launch_of({}, 8, launched=False)
    assert (around.processes, around.stage) == (8, None)
    (finding,) = memory(config, shape, around, cards)
    assert finding.level == "ok"
    assert finding.text.endswith(" fits")
    (finding,) = memory(config, shape, launch_of({}, 8, launched=True), cards)
    assert finding.level == "error"


@pytest.mark.parametrize("told", ["true", "TRUE", "1", "yes"])
def test_deepspeed_is_asked_for_as_accelerate_reads_it(told):
    around = launch_of({"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": told}, 8, launched=True)
    assert (around.processes, around.stage) == (8, 2)


def test_memory_under_fsdp2_is_estimated():
    around = launch_of({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}, 8, launched=True)
    assert (around.processes, around.stage, around.fsdp) == (8, 0, True)
    cards = [Device(f"cuda:{index}", "A100", (8, 0), 39 * GIB, 37 * GIB, 40 * GIB) for index in range(8)]
    config = load_config(TrainConfig, [f"config={CONFIG}"], "", "")
    shape = SDARConfig(**SHAPES["SDAR-4B-Chat"])
    (finding,) = memory(config, shape, around, cards)
    needed = estimate_fsdp2(config, shape, 8).total + RESERVE
    assert f"an estimate: FSDP2 {needed / GIB:.1f} GiB per GPU" in finding.text


def test_what_fsdp2_cannot_train_is_refused_where_the_command_would(training, monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "a launch of one process" in errors("train", training())["launch"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "use_cpu in a file does not set it" in str(findings("train", training())["launch"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (finding,) = findings("train", training())["launch"]
    assert finding.level == "ok"
    assert "2 processes on 1 machine, FSDP2; " in finding.text
    assert errors("train", training("model.lora_rank=4"))["launch"] == "model.lora_rank: 4"


def test_an_evaluation_is_of_the_newest_finished_run(decoding, checkpoint, tmp_path):
    method = tmp_path / "t3d"
    newest = shutil.copytree(checkpoint, method / "20260102-000000" / "ckpt" / "optimized")
    shutil.copytree(checkpoint, method / "20260101-000000" / "ckpt" / "optimized")
    arguments = decoding(model=method / "ckpt" / "optimized")
    assert not errors("eval", arguments)
    assert str(newest) in findings("eval", arguments)["checkpoint"][0].text


def test_a_rollout_file_to_grade_needs_no_model(tmp_path, monkeypatch):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps([{"question": "1+1?", "ground_truth_answer": "2", "full_output": ["2", "3"]}]))
    found = findings("eval", [f"evaluation.rollouts={path}", f"experiment.output_dir={tmp_path}"])
    assert found["rollouts"][0].text.endswith("1 problems, 2 responses to grade")
    assert found.keys() == {"sandbox", "rollouts", "output"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not errors("eval", ["evaluation.rollouts=~/outputs.json", f"experiment.output_dir={tmp_path}"])
    path.write_text(json.dumps([{"question": "1+1?", "ground_truth_answer": "2"}]))
    assert "full_output" in errors("eval", [f"evaluation.rollouts={path}"])["rollouts"]


def test_a_table_names_what_is_missing_and_examines_what_is_there(decoding, checkpoint):
    asked = decoding(f"table.checkpoints={{teacher: {checkpoint}, student: /nowhere}}", "table.decodings=[[4,4],[4,1]]")
    found = findings("eval", asked)
    assert "4 cells, 2 checkpoints, 1 missing or unreadable, such as /nowhere" in found["table"][0].text
    assert found["rehearsal"][0].level == "ok"
    assert found["table"][0].level == "error"
    assert findings("eval", [*asked, "table.skip_missing=true"])["table"][0].level == "warning"


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"rollout.seed", "evaluation.eval_dataset", "experiment.project"}, "sample"),
        ({"rollout.seed", "execute.timeout_s"}, "eval"),
        ({"table.rows"}, "eval"),
        ({"evaluation.rollouts"}, "eval"),
        ({"training.seed", "experiment.project"}, "train"),
    ],
)
def test_the_kind_of_a_command_follows_from_its_keys(keys, kind):
    assert kind_of(keys) == kind


def test_the_page_is_printed_and_an_error_is_one_line_more(decoding, capsys):
    main([*decoding(), "execute.num_workers=1"])
    page = capsys.readouterr().out
    assert page.startswith("t3d doctor: eval ")
    assert page.endswith("no errors, no warnings\n")
    assert len(page.splitlines()) <= 40
    with pytest.raises(UserError, match=r"doctor: expected a command that will run, found 1 error \(above"):
        main(["--for", "sample", *decoding(data=Path("Nowhere"))])
    assert "1 error, no warnings\n" in capsys.readouterr().out


def test_a_file_that_is_missing_is_a_mistake_in_one_line():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        main(["config=nowhere.yaml"])


def test_a_dry_run_is_the_first_processes_to_tell(training, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    dry_run("train", ["--dry-run", *training("model.pretrained_model=/nowhere")])
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    dry_run("train", ["--dry-run", *training()])
    assert "no errors" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_named_with_the_cure(training, tmp_path, monkeypatch):
    """Whoever runs the tests may be root, whom no permission stops: the file system answers in its place."""
    monkeypatch.setenv("T3D_CACHE_ROOT", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "cache")
    assert errors("train", training())["data"].endswith("/cache cannot be written to")


def test_a_full_disk_stops_a_rollout_before_it_is_decoded(decoding, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert errors("sample", decoding())["output"].endswith("0.0 MiB free")
