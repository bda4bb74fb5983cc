from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from t3d.arena.settings import ArenaConfig
from t3d.config import EvalConfig, SampleConfig, TrainConfig, load_config, named_keys, save_config
from t3d.config.release import DECODING_KEYS, TRAINING_KEYS
from t3d.errors import ConfigError
from t3d.rollout.run import project_folder

ROOT = Path(__file__).parents[1]
TRAIN_NEEDS = ["model.pretrained_model=teacher", "dataset.optimization_data=rollouts"]


def decode_config(*arguments: str) -> EvalConfig:
    return load_config(EvalConfig, list(arguments), "purpose", "example")


def train_config(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, [*TRAIN_NEEDS, *arguments], "purpose", "example")


def yaml_file(folder: Path, text: str, name: str = "config.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return f"config={folder / name}"


def refusal(load, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert ": expected " in message
    assert ", found " in message
    return message


class TestLayers:
    def test_the_command_line_wins_over_the_file_and_the_file_over_the_schema(self, tmp_path):
        file = yaml_file(tmp_path, "rollout: {block_size: 8, max_token: 33}")
        config = decode_config(file, "rollout.max_token=44")
        rollout = config.rollout
        assert (rollout.block_size, rollout.max_token, rollout.temperature) == (8, 44, 0.1)

    def test_the_command_line_wins_wherever_the_file_is_named(self, tmp_path):
        file = yaml_file(tmp_path, "rollout: {max_token: 33}")
        assert decode_config("rollout.max_token=44", file).rollout.max_token == 44

    def test_of_two_files_and_of_two_overrides_the_later_wins(self, tmp_path):
        first = yaml_file(tmp_path, "rollout: {max_token: 1, top_k: 5}", "first.yaml")
        second = yaml_file(tmp_path, "rollout: {max_token: 2}", "second.yaml")
        config = decode_config(first, second, "rollout.seed=3", "rollout.seed=4")
        assert (config.rollout.max_token, config.rollout.top_k, config.rollout.seed) == (2, 5, 4)

    def test_an_empty_file_changes_nothing(self, tmp_path):
        assert decode_config(yaml_file(tmp_path, "")) == decode_config()

    @pytest.mark.parametrize("text", ["rollout:", "rollout: null", "rollout: {}", "rollout: ~\nevaluation:"])
    def test_a_group_with_nothing_in_it_changes_nothing(self, tmp_path, text):
        assert decode_config(yaml_file(tmp_path, text)) == decode_config()

    def test_a_file_may_lie_in_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        yaml_file(tmp_path, "rollout: {seed: 5}")
        (tmp_path / "other").mkdir()
        above = yaml_file(tmp_path / "other", "base: ~/config.yaml")
        assert decode_config("config=~/config.yaml").rollout.seed == decode_config(above).rollout.seed == 5

    def test_anchors_and_merged_mappings_are_read(self, tmp_path):
        file = yaml_file(tmp_path, "rollout: &x {seed: 5}\nexperiment: {project: &y 010, output_dir: *y}")
        assert (decode_config(file).rollout.seed, decode_config(file).experiment.output_dir) == (5, "010")
        merged = yaml_file(tmp_path, "rollout:\n  <<: {seed: 5, top_k: 3}\n  seed: 6")
        assert (decode_config(merged).rollout.seed, decode_config(merged).rollout.top_k) == (6, 3)

    def test_values_become_plain_objects_of_the_declared_types(self):
        config = decode_config("rollout.stop_token_list=[7, '<|im_end|>']", "rollout.temperature=1")
        assert config.rollout.stop_token_list == [7, "<|im_end|>"]
        assert type(config.rollout.stop_token_list) is list
        assert type(config.rollout.temperature) is float
        assert isinstance(config, EvalConfig)

    def test_null_unsets_an_optional_key(self, tmp_path):
        file = yaml_file(tmp_path, "evaluation: {limit: 5}")
        assert decode_config(file, "evaluation.limit=null").evaluation.limit is None
        assert decode_config(file, "evaluation.limit=").evaluation.limit is None

    def test_values_may_hold_equals_signs(self):
        assert decode_config("evaluation.checkpoint_path=/a=b/c").evaluation.checkpoint_path == "/a=b/c"

    def test_interpolations_are_resolved_as_the_release_uses_them(self, tmp_path):
        file = yaml_file(
            tmp_path,
            "optimizer: {params: {learning_rate: 3e-4}}\n"
            "lr_scheduler: {params: {learning_rate: '${optimizer.params.learning_rate}'}}",
        )
        assert train_config(file).lr_scheduler.params.learning_rate == 3e-4
        changed = train_config(file, "optimizer.params.learning_rate=5e-4")
        assert changed.lr_scheduler.params.learning_rate == 5e-4

    def test_rows_of_a_table_may_be_added_on_the_command_line(self):
        config = decode_config("table.checkpoints.a=x", "table.checkpoints.b=y", "table.decodings=[[4,4],[8,2]]")
        assert config.table.checkpoints == {"a": "x", "b": "y"}
        assert config.table.decodings == [[4, 4], [8, 2]]

    def test_an_unquoted_no_is_the_choice_no(self, tmp_path):
        assert train_config(yaml_file(tmp_path, "training: {mixed_precision: no}")).training.mixed_precision == "no"


class TestText:
    """A key declared as text takes the text as it is written."""

    TEXTS = (
        *("0042", "2026_11_28", "12e5678", "1e3", "0x1F", "1:30", "yes", "off", "true", "2026-11-28", "1.50"),
        *("a=b", "=", "<<", "&x", "*x", "!x", "- a", "a: b", "%x", "@x", "`x`", "C:\\new", "~/runs", "é 漢字"),
    )

    @pytest.mark.parametrize("text", [*TEXTS, "run #2", "{a: 1}", "#1", "'", '"a', "a'b'", "it's", " x "])
    def test_on_the_command_line(self, text):
        config = decode_config(f"experiment.project={text}", f"experiment.output_dir={text}", f"table.title={text}")
        assert (config.experiment.project, config.experiment.output_dir, config.table.title) == (text,) * 3

    @pytest.mark.parametrize("text", ["0042", "2026_11_28", "12e5678", "1:30", "yes", "2026-11-28", "run#2", "~/runs"])
    def test_in_a_file(self, tmp_path, text):
        config = decode_config(yaml_file(tmp_path, f"experiment: {{project: {text}, output_dir: {text}}}"))
        assert (config.experiment.project, config.experiment.output_dir) == (text, text)

    @pytest.mark.parametrize("text", [*TEXTS, "run #2", "null", "", "no"])
    def test_and_a_saved_configuration_keeps_it(self, tmp_path, text):
        config = decode_config()
        config.experiment.project = config.experiment.output_dir = text
        config.table.checkpoints, config.table.decodings = {text or "x": text}, [[4, 1]]
        config.rollout.stop_token_list = [text, 10]
        save_config(config, tmp_path / "saved.yaml")
        assert decode_config(f"config={tmp_path / 'saved.yaml'}") == config

    def test_in_lists_and_mappings(self, tmp_path):
        file = yaml_file(tmp_path, "table: {checkpoints: {0042: 010, 1.7: 2026_11_28}, datasets: [007, on]}")
        config = decode_config(file, "table.decodings=[[4,1]]", "rollout.stop_token_list=[10, 010, '11', yes]")
        assert config.table.checkpoints == {"0042": "010", "1.7": "2026_11_28"}
        assert config.table.datasets == ["007", "on"]
        assert config.rollout.stop_token_list == [10, "010", "11", "yes"]

    def test_quotes_around_the_whole_are_taken_off(self):
        config = decode_config("experiment.project='0042'", 'experiment.output_dir="null"', "table.title=''")
        assert (config.experiment.project, config.experiment.output_dir, config.table.title) == ("0042", "null", "")

    def test_nothing_and_null_unset_it(self, tmp_path):
        for nothing in ("", "null", "~"):
            file = yaml_file(tmp_path, f"experiment:\n  output_dir: {nothing}")
            assert decode_config(file).experiment.output_dir is None
            assert decode_config(f"experiment.output_dir={nothing}").experiment.output_dir is None
            assert "experiment.project: expected str, found " in refusal(decode_config, f"experiment.project={nothing}")

    def test_a_row_of_a_table_may_have_dots_in_its_name(self):
        config = decode_config(
            "table.checkpoints.SDAR-1.7B=a/b=c", "table.checkpoints.x=010", "table.decodings=[[4,1]]"
        )
        assert config.table.checkpoints == {"SDAR-1.7B": "a/b=c", "x": "010"}


class TestNumbers:
    @pytest.mark.parametrize(
        "text", ["010", "0x10", "0b11", "0o17", "1:30", "00", "1__0", "_1", "1_", "١٢", "1.0", "1e2"]
    )
    def test_whole_numbers_are_decimal(self, tmp_path, text):
        for source in (f"rollout.seed={text}", yaml_file(tmp_path, f"rollout: {{seed: {text}}}")):
            assert f"rollout.seed: expected int, found {text}" in refusal(decode_config, source)
        assert f"expected list[list[int]], found {text}" in refusal(decode_config, f"table.decodings=[[{text}, 1]]")

    @pytest.mark.parametrize(("text", "number"), [("0", 0), ("+5", 5), ("1_000_000", 10**6), ("'7'", 7), (" 8", 8)])
    def test_decimal_ones_are_read(self, text, number):
        assert decode_config(f"rollout.seed={text}").rollout.seed == number

    @pytest.mark.parametrize(
        ("text", "number"), [("1e-3", 1e-3), ("1", 1.0), (".5", 0.5), ("1_0.5", 10.5), ("5.", 5.0)]
    )
    def test_so_are_those_with_a_point_or_an_exponent(self, text, number):
        assert decode_config(f"rollout.temperature={text}").rollout.temperature == number

    @pytest.mark.parametrize("text", ["1:30.5", "0x1p3", "1e", "1,5", "e5", "."])
    def test_and_nothing_else(self, text):
        assert f"rollout.temperature: expected float, found {text}" in refusal(
            decode_config, f"rollout.temperature={text}"
        )

    @pytest.mark.parametrize(("text", "value"), [("yes", True), ("Off", False), ("TRUE", True), ("false", False)])
    def test_truth_values_have_their_usual_names(self, text, value):
        assert decode_config(f"rollout.resume={text}").rollout.resume is value


class TestMistakesInKeys:
    @pytest.mark.parametrize(
        ("argument", "key", "nearest"),
        [
            ("rollout.blok_size=4", "rollout.blok_size", "rollout.block_size"),
            (
                "rollout.denoising_step_per_block=4",
                "rollout.denoising_step_per_block",
                "rollout.denoising_steps_per_block",
            ),
            ("rolout.seed=4", "rolout", "rollout"),
            ("evaluation.checkpoint=x", "evaluation.checkpoint", "evaluation.checkpoint_path"),
        ],
    )
    def test_an_unknown_key_is_answered_with_the_nearest_known_one(self, argument, key, nearest):
        assert refusal(decode_config, argument) == (
            f"command line: {key}: expected a known key (nearest: {nearest}), found an unknown one"
        )

    def test_an_unknown_key_of_a_file_names_the_file(self, tmp_path):
        file = yaml_file(tmp_path, "training: {lambda_pth: 0.2}")
        message = refusal(train_config, file)
        assert message.startswith(f"{tmp_path / 'config.yaml'}: training.lambda_pth: ")
        assert "nearest: training.lambda_path" in message

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("rollout", "config=FILE or key=value, found rollout"),
            ("--seed=4", "config=FILE or key=value, found --seed=4"),
            ("=4", "config=FILE or key=value, found =4"),
            ("rollout.block_size: 4", "config=FILE or key=value, found rollout.block_size: 4"),
            ("rollout.block_size=[4", "key=value, found rollout.block_size=[4"),
            ("rollout.block_size=${", "int, found no viable alternative at input"),
            ("rollout=5", "a group of keys, found 5"),
            ("rollout=null", "a group of keys, found null"),
            ("rollout.=5", "a known key (nearest: rollout), found an unknown one"),
            ("rollout.seed.deep=5", "int, found Value '{'deep': '5'}'"),
        ],
    )
    def test_arguments_that_are_no_key_and_value_are_refused(self, argument, expected):
        assert f"expected {expected}" in refusal(decode_config, argument)

    def test_mandatory_keys_left_out_are_named(self):
        def load(*arguments):
            return load_config(TrainConfig, list(arguments), "purpose", "example")

        assert refusal(load) == "model.pretrained_model: expected a value, found none"
        message = refusal(load, "model.pretrained_model=x")
        assert message == "dataset.optimization_data: expected a value, found none"


class TestMistakesInFiles:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("rollout:\n  seed: [", "did not find expected node content"),
            ("rollout:\n\tseed: 4", "cannot start any token"),
            ("rollout:\n  seed: 4\n  seed: 5", "duplicate key seed"),
            ("rollout: {seed: !!python/object/apply:os.getpid []}", "could not determine a constructor"),
            ("rollout: {seed: 4, 'seed': 5}", "duplicate key seed"),
            ("a: 1\nb: 2\na: 3", "duplicate key a"),
            ("a: *b", "undefined alias"),
            ("\x00", "control characters are not allowed"),
        ],
    )
    def test_broken_yaml_is_one_line_with_its_place(self, tmp_path, text, found):
        message = refusal(decode_config, yaml_file(tmp_path, text))
        assert message.startswith(f"{tmp_path / 'config.yaml'}: expected a readable YAML file, found ")
        assert found in message

    def test_a_list_inside_itself_is_refused(self, tmp_path):
        file = yaml_file(tmp_path, "rollout: {stop_token_list: &x [*x]}")
        assert "maximum recursion depth exceeded" in refusal(decode_config, file)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path):
        (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x80")
        assert "readable YAML" in refusal(decode_config, f"config={tmp_path / 'x.yaml'}")

    def test_a_list_is_no_configuration(self, tmp_path):
        assert "expected keys with values, found a list" in refusal(decode_config, yaml_file(tmp_path, "- a"))

    def test_a_missing_file_is_named(self, tmp_path):
        path = tmp_path / "none.yaml"
        assert refusal(decode_config, f"config={path}") == f"{path}: expected a YAML file, found none there"

    @pytest.mark.parametrize("argument", ["config=", "config=/"])
    def test_a_folder_is_no_file(self, argument):
        assert "Is a directory" in refusal(decode_config, argument)

    @pytest.mark.parametrize("text", ["rollout: 5", "rollout: [1]", "rollout: ${evaluation}"])
    def test_a_group_must_hold_keys(self, tmp_path, text):
        assert "rollout: expected a group of keys" in refusal(decode_config, yaml_file(tmp_path, text))


class TestMistakesInValues:
    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("rollout.block_size=four", "int"),
            ("rollout.block_size=4.0", "int"),
            ("rollout.block_size=true", "int"),
            ("rollout.block_size=null", "int"),
            ("rollout.block_size=", "int"),
            ("rollout.block_size=1e3", "int"),
            ("rollout.block_size=[4]", "int"),
            ("rollout.block_size=${rollout.temperature}", "int"),
            ("rollout.block_size=${rollout.nowhere}", "int"),
            ("rollout.temperature=hot", "float"),
            ("rollout.temperature=true", "float"),
            ("rollout.resume=perhaps", "bool"),
            ("rollout.stop_token_list=5", "list[any] | None"),
            ("rollout.stop_token_list={a: 1}", "list[any] | None"),
            ("evaluation.checkpoint_path=[a]", "str | None"),
            ("evaluation.eval_dataset=null", "str"),
            ("evaluation.limit=some", "int | None"),
            ("table.decodings=[4, 2]", "list[list[int]]"),
            ("table.decodings=[[4, null]]", "list[list[int]]"),
            ("table.checkpoints=[a]", "dict[str, str]"),
        ],
    )
    def test_a_wrong_type_names_the_key_and_the_expected_type(self, argument, expected):
        key = argument.partition("=")[0]
        assert f"{key}: expected {expected}, found " in refusal(decode_config, argument)

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("rollout.block_size=0", "at least 1, found 0"),
            ("rollout.block_size=-4", "at least 1, found -4"),
            ("rollout.denoising_steps_per_block=5", "at most rollout.block_size = 4, found 5"),
            ("rollout.denoising_steps_per_block=0", "at least 1, found 0"),
            ("rollout.max_token=0", "at least 1, found 0"),
            ("rollout.temperature=-0.1", "at least 0, found -0.1"),
            ("rollout.temperature=nan", "a finite number, found nan"),
            ("rollout.temperature=.inf", "a finite number, found inf"),
            ("rollout.top_p=0", "above 0, at most 1, found 0.0"),
            ("rollout.top_p=1.01", "0 to 1, found 1.01"),
            ("rollout.top_k=-1", "at least 0, found -1"),
            ("rollout.dynamic_threshold=1.5", "0 to 1, found 1.5"),
            ("rollout.dynamic_threshold=-0.5", "0 to 1, found -0.5"),
            ("rollout.remasking_strategy=random", "one of low_confidence_static, "),
            ("rollout.num_response_per_task=0", "at least 1, found 0"),
            ("rollout.seed=-1", "0 to 9223372036854775807, found -1"),
            ("rollout.seed=9223372036854775808", "0 to 9223372036854775807, found 9223372036854775808"),
            ("rollout.tensor_parallel_size=0", "at least 1, found 0"),
            ("rollout.num_workers=-1", "at least 0, found -1"),
            ("rollout.confidence=odd", "one of scaled, raw, found odd"),
            ("rollout.dtype=int8", "one of auto, "),
            ("evaluation.data_type=chess", "one of math, code, option, found chess"),
            ("evaluation.node_index=1", "below evaluation.num_node = 1, found 1"),
            ("evaluation.node_index=-1", "at least 0, found -1"),
            ("evaluation.limit=0", "at least 1, found 0"),
            ("execute.sandbox=trust", "one of auto, bwrap, sandlock, none, found trust"),
        ],
    )
    def test_an_impossible_decoding_value_is_refused(self, argument, expected):
        key = argument.partition("=")[0]
        assert refusal(decode_config, argument).startswith(f"command line: {key}: expected {expected}")

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("training.mask_ratios=[]", "a non-empty list of ratios in (0, 1], found []"),
            ("training.mask_ratios=[1.0, 0]", "a non-empty list of ratios in (0, 1], found [1.0, 0.0]"),
            ("training.mask_ratios=[1.5]", "a non-empty list of ratios in (0, 1], found [1.5]"),
            ("training.mask_ratios=[.nan]", "a non-empty list of ratios in (0, 1], found [nan]"),
            ("training.objective=magic", "one of sft, redi, dparallel, td, ddo, t3d, near_far, found magic"),
            ("training.mask_strategy=latest", "one of trace, random, trace_earliest, found latest"),
            ("training.round_interval=0", "at least 1, found 0"),
            ("training.reference_temp=1", "0 with fake_expectation=argmax, above 0 with sample or exact"),
            (
                "training.block_size_choices=[4]",
                "sizes of at least 1, and no path loss, ranking or soft targets",
            ),
            ("model.random_ratio=1.5", "0 to 1, found 1.5"),
            ("optimizer.params.learning_rate=nan", "a finite number, found nan"),
            ("optimizer.params.learning_rate=1e400", "a finite number, found inf"),
            ("optimizer.params.learning_rate=-1e-5", "at least 0, found -1e-05"),
            ("optimizer.params.beta1=1", "at least 0, below 1, found 1.0"),
            ("optimizer.params.beta2=1.5", "0 to 1, found 1.5"),
            ("experiment.trackers=[wandb, mlflow]", "wandb, tensorboard, found mlflow"),
            ("model.optimized_name=a/b", "a name, not a path, found 'a/b'"),
            ("model.optimized_name=..", "a name, not a path, found '..'"),
            ("model.optimized_name=step-000002", "a name that no other checkpoint of the run has, found step-000002"),
            ("dataset.prompts.math='Solve $${problem}$.'", "a value in which ${NAME} stands for the key NAME, found"),
        ],
    )
    def test_an_impossible_training_value_is_refused(self, argument, expected):
        key = argument.partition("=")[0]
        assert refusal(train_config, argument).startswith(f"command line: {key}: expected {expected}")

    def test_the_file_that_gave_an_impossible_value_is_named(self, tmp_path):
        """The last one that did: not the file below it, and the command line where that overrides both."""
        base, above = tmp_path / "base.yaml", tmp_path / "above.yaml"
        base.write_text("rollout: {top_p: 3, top_k: -1}\nevaluation: {limit: 0}\n")
        above.write_text("base: base.yaml\nrollout: {top_p: 0, top_k: 4}\n")
        for words, expected in (
            ([], f"{base}: evaluation.limit: expected at least 1, found 0"),
            (["evaluation.limit=1"], f"{above}: rollout.top_p: expected above 0, at most 1, found 0.0"),
            (["evaluation.limit=-1"], "command line: evaluation.limit: expected at least 1, found -1"),
        ):
            assert refusal(decode_config, f"config={above}", *words) == expected
        assert decode_config(f"config={above}", "evaluation.limit=1", "rollout.top_p=1").rollout.top_k == 4

    @pytest.mark.parametrize("words", ["training.ranking_weight=1", "training.objective=near_far"])
    def test_terms_that_follow_the_order_want_two_coarse_steps(self, words):
        expected = "training.path_k_steps: expected below block_size (4) with ranking or soft targets: two coarse steps"
        assert refusal(train_config, words, "training.block_size=4").startswith(expected)
        assert train_config(words, "training.block_size=5").training.path_k_steps == 4

    @pytest.mark.parametrize(
        ("key", "value", "own"),
        [("experiment.max_grad_norm", 2.0, 1.0), ("lr_scheduler.params.learning_rate", 1e-3, 1e-5)],
    )
    def test_two_names_of_one_thing_must_agree(self, key, value, own):
        message = refusal(train_config, f"{key}={value}")
        assert message == f"command line: {key}: expected null or the value of its namesake, {own}, found {value}"
        train_config(f"{key}={own}")

    @pytest.mark.parametrize(
        ("load", "argument", "expected"),
        [
            (decode_config, "model_base=llama", "sdar, found llama"),
            (decode_config, "rollout.random_init_ratio=0.5", "0, found 0.5"),
            (decode_config, "rollout.random_init_ratio=some", "0, found some"),
            (
                decode_config,
                "rollout.num_task_per_step=0",
                "a whole number, without effect in the release either, found",
            ),
            (train_config, "training.method=ar", "semi-ar, found ar"),
            (train_config, "training.target_temp=0.5", "0, found 0.5"),
            (train_config, "training.target_temp=null", "0, found null"),
            (train_config, "optimizer.name=sgd", "adamw, found sgd"),
        ],
    )
    def test_a_key_of_the_release_that_asks_for_what_is_not_there_is_refused(self, load, argument, expected):
        key = argument.partition("=")[0]
        assert refusal(load, argument).startswith(f"command line: {key}: expected {expected}")

    @pytest.mark.parametrize(
        ("load", "arguments"),
        [
            (decode_config, ["model_base=sdar", "rollout.random_init_ratio=0.0", "rollout.num_task_per_step=7"]),
            (train_config, ["training.method=semi-ar", "training.target_temp=0", "optimizer.name=adamw"]),
        ],
    )
    def test_a_key_of_the_release_that_asks_for_what_is_done_anyway_sets_nothing(self, load, arguments, tmp_path):
        assert load(*arguments) == load()
        save_config(load(*arguments), tmp_path / "saved.yaml")
        assert not {argument.partition("=")[0].rpartition(".")[2] for argument in arguments} & set(
            (tmp_path / "saved.yaml").read_text().replace(":", "").split()
        )

    def test_a_key_of_the_release_is_one_of_its_own_groups_alone(self):
        assert "training: expected a known key" in refusal(decode_config, "training.method=semi-ar")
        assert "rollout: expected a known key" in refusal(train_config, "rollout.num_task_per_step=1")

    def test_a_table_and_given_rollouts_exclude_each_other(self):
        table = ["table.checkpoints.a=x", "table.decodings=[[4,4]]"]
        assert "null beside table.checkpoints" in refusal(decode_config, *table, "evaluation.rollouts=r.json")
        assert "checkpoints and decodings, or neither" in refusal(decode_config, table[0])
        assert "at most as many steps" in refusal(decode_config, table[0], "table.decodings=[[4,5]]")

    def test_newlines_of_a_value_do_not_break_the_line(self):
        assert "four score" in refusal(decode_config, "rollout.block_size='four\n\nscore'")


RELEASE_SAMPLE: dict[str, Any] = {
    "experiment": {"project": "sdar_sample", "num_node": 1},
    "model_base": "sdar",
    "rollout": {
        "tensor_parallel_size": 1,
        "max_active": 64,
        "num_task_per_step": 1,
        "num_response_per_task": 1,
        "temperature": 0.1,
        "max_token": 2000,
        "block_size": 4,
        "denoising_steps_per_block": 4,
        "top_p": 1.0,
        "top_k": 0,
        "remasking_strategy": "low_confidence_static",
        "dynamic_threshold": 0.9,
        "start_with_think": False,
        "random_init_ratio": 0.0,
        "batch_size": None,
        "stop_token_list": None,
    },
    "evaluation": {
        "checkpoint_path": "JetLM/SDAR-4B-Chat",
        "eval_dataset": "MATH500",
        "data_type": "math",
        "num_node": 1,
        "node_index": 0,
        "output_unmasking_history": True,
    },
    "execute": {"num_chunk": 64},
}
RELEASE_TRAIN = """
experiment:
  project: ddo_sdar_full_self
  start_from_scratch: True
  num_node: 1
  save_every_steps: 256
  max_grad_norm: 1.0
  gradient_clipping: True
  checkpoints_total_limit: null
  output_dir: null
model: {pretrained_model: JetLM/SDAR-4B-Chat, optimized_name: optimized, random_ratio: 0.1}
dataset: {optimization_data: SDAR-4B-Chat-MATH_train_renamed, data_type: math}
training:
  gradient_checkpointing_enable: True
  gradient_accumulation_steps: 32
  batch_size_lm: 1
  mixed_precision: bf16
  enable_tf32: True
  seed: 10086
  num_train_epochs: 30
  max_grad_norm: 1.0
  method: semi-ar
  mask_strategy: trace
  block_size: 8
  post_num: 2
  max_gen_length: 1024
  max_prompt_len: 512
  target_temp: 0.0
  reference_temp: 0.0
  alpha: 0.5
  beta: 0.1
  path_k_steps: 4
  lambda_path: 0.2
  mask_ratios: [1.0, 0.75, 0.5, 0.25]
  mask_ratio_exponent: 8
  multi_round: True
  round_interval: 10
optimizer:
  name: adamw
  params: {learning_rate: 1e-5, scale_lr: False, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, epsilon: 1e-8}
lr_scheduler:
  scheduler: cosine
  params:
    learning_rate: ${optimizer.params.learning_rate}
    warmup_steps: 20
    min_lr_scale: 0.1
wandb: {entity: null, project: null, resume: False, run_id: null}
"""


class TestFiles:
    def test_every_key_of_the_releases_decoding_files_is_accepted(self, tmp_path):
        file = yaml_file(tmp_path, yaml.safe_dump(RELEASE_SAMPLE))
        config = decode_config(file)
        assert load_config(SampleConfig, [file], "", "").rollout == config.rollout
        assert config.rollout.max_token == 2000
        assert config.rollout.stop_token_list is None

    def test_every_key_of_the_releases_training_files_is_accepted(self, tmp_path):
        config = load_config(TrainConfig, [yaml_file(tmp_path, RELEASE_TRAIN)], "", "")
        assert config.optimizer.params.learning_rate == config.lr_scheduler.params.learning_rate == 1e-5
        assert config.training.mask_ratio_exponent == 8

    @pytest.mark.parametrize(
        "path",
        # base.yaml is no arena by itself; the others begin with it.
        [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.stem != "base"],
        ids=lambda path: path.stem,
    )
    def test_every_file_of_the_repository_loads(self, path):
        schema = TrainConfig if "training.objective" in named_keys([f"config={path}"]) else EvalConfig
        given = [f"config={path}"]
        if path.parent.name == "arena":
            schema = ArenaConfig
            given.append(f"name={path.stem}")  # files that others build on have none
        assert isinstance(load_config(schema, given, "", ""), schema)

    @pytest.mark.parametrize("world", ["", "toy"])
    @pytest.mark.parametrize("name", ["sft", "redi", "dparallel", "td", "ddo"])
    def test_a_baseline_differs_from_t3d_in_its_objective_data_and_folder(self, world, name):
        folder = ROOT / "configs" / world
        files = f"{name}.yaml", "t3d.yaml"
        ours, theirs = (load_config(TrainConfig, [f"config={folder / file}"], "", "") for file in files)
        assert ours.training.objective == name
        assert ours.training.path_weight == 0
        assert replace(ours.training, objective="t3d", lambda_path=theirs.training.lambda_path) == theirs.training
        assert (ours.model, ours.optimizer, ours.lr_scheduler) == (theirs.model, theirs.optimizer, theirs.lr_scheduler)

    @pytest.mark.parametrize("name", ["sft", "redi", "dparallel", "td", "ddo", "t3d"])
    def test_data_and_folder_follow_the_model_and_the_kind_of_problem(self, name):
        file = f"config={ROOT / 'configs' / f'{name}.yaml'}"
        for model, data_type, data in (
            ("JetLM/SDAR-4B-Chat", "math", "SDAR-4B-Chat-MATH_train_renamed"),
            ("/models/SDAR-1.7B-Chat", "code", "SDAR-1.7B-Chat-PrimeIntellect_renamed"),
        ):
            asked = [file, f"model.pretrained_model={model}", f"dataset.data_type={data_type}"]
            config = load_config(TrainConfig, asked, "", "")
            assert config.dataset.optimization_data == ("Bespoke-Stratos-17k_600" if name == "sft" else data)
            assert config.experiment.output_dir is None
            assert config.experiment.project == name
        assert (
            load_config(TrainConfig, [file, "dataset.optimization_data=mine"], "", "").dataset.optimization_data
            == "mine"
        )

    def test_a_kind_without_training_problems_of_the_paper_needs_its_data_named(self):
        file = f"config={ROOT / 'configs/td.yaml'}"
        with pytest.raises(ConfigError, match=r"dataset\.optimization_data: .*no training problems of the kind option"):
            load_config(TrainConfig, [file, "dataset.data_type=option"], "", "")

    def test_a_file_wins_over_its_base_and_the_command_line_over_both(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "first.yaml").write_text("rollout: {block_size: 8, max_token: 5, seed: 1}")
        (tmp_path / "second.yaml").write_text("base: first.yaml\nrollout: {max_token: 6, seed: 2}")
        (tmp_path / "deep/third.yaml").write_text("base: ../second.yaml\nrollout: {seed: 3}")
        config = decode_config(f"config={tmp_path / 'deep/third.yaml'}", "rollout.top_k=4")
        rollout = config.rollout
        assert (rollout.block_size, rollout.max_token, rollout.seed, rollout.top_k) == (8, 6, 3, 4)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("base: a.yaml", r"a\.yaml: base: expected files that do not lead back to themselves"),
            ("base: none.yaml", r"a\.yaml: base: expected a YAML file, found none there.*none\.yaml\)"),
            ("base: [a]", r"a\.yaml: base: expected the name of a YAML file"),
        ],
    )
    def test_a_base_that_leads_nowhere_is_named(self, tmp_path, content, message):
        (tmp_path / "a.yaml").write_text(content)
        with pytest.raises(ConfigError, match=message):
            decode_config(f"config={tmp_path / 'a.yaml'}")

    def test_the_releases_name_of_t3ds_file_is_another_name_of_ours(self):
        ours, theirs = (
            load_config(TrainConfig, [f"config={ROOT / 'configs' / name}.yaml"], "", "")
            for name in ("t3d", "ddo_sdar_full_self")
        )
        assert ours == theirs

    def test_a_base_may_be_one_that_comes_with_t3d(self, tmp_path):
        mine = yaml_file(tmp_path, "base: toy/eval\nrollout: {max_token: 5}")
        assert decode_config(mine) == decode_config("config=toy/eval", "rollout.max_token=5")
        assert decode_config(mine).rollout.max_active == 128

    def test_the_papers_settings_are_those_of_the_training_file(self):
        path = ROOT / "configs" / "t3d.yaml"
        training = load_config(TrainConfig, [f"config={path}"], "", "").training
        assert (training.block_size, training.gradient_accumulation_steps, training.seed) == (8, 32, 10086)
        assert (training.num_train_epochs, training.round_interval, training.post_num) == (30, 10, 2)

    def test_a_saved_configuration_loads_as_it_was(self, tmp_path):
        decoding = decode_config(
            "rollout.stop_token_list=[1, two, '3']",
            "evaluation.checkpoint_path='null'",
            "experiment.project='a: b # c'",
            "table.checkpoints={a: x}",
            "table.decodings=[[4, 2]]",
            "table.labels={a: λ = 0.2}",
            "rollout.seed=9223372036854775807",
        )
        training = train_config("training.mixed_precision='no'", "optimizer.params.epsilon=1e-9")
        for config in (decoding, training):
            path = tmp_path / "saved.yaml"
            save_config(config, path)
            assert load_config(type(config), [f"config={path}"], "", "") == config

    def test_a_saved_configuration_is_resolved(self, tmp_path):
        save_config(
            train_config("lr_scheduler.params.learning_rate=${optimizer.params.learning_rate}"),
            tmp_path / "c",
        )
        assert "${" not in (tmp_path / "c").read_text()


def help_page(schema: type, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        load_config(schema, [*arguments], "What it is for.", "python x.py a=b")
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("What it is for.\n")
    assert page.endswith("Example:\n  python x.py a=b\n")
    return page


def keys_of(page: str) -> set[str]:
    return {line.split(" = ")[0].strip() for line in page.splitlines() if line.startswith("  ") and " = " in line}


RELEASES_ALONE = {
    SampleConfig: {*DECODING_KEYS},
    EvalConfig: {*DECODING_KEYS} - {"execute.num_chunk"},
    TrainConfig: {*TRAINING_KEYS},
}


class TestHelp:
    @pytest.mark.parametrize("schema", [SampleConfig, EvalConfig, TrainConfig])
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_it_lists_every_key_that_the_command_reads_and_the_releases_others_in_one_line(self, schema, flag, capsys):
        page = help_page(schema, capsys, flag)
        theirs = yaml.safe_load(RELEASE_TRAIN) if schema is TrainConfig else RELEASE_SAMPLE
        known = keys_of(page)
        assert {
            f"{group}.{name}" for group, names in theirs.items() if isinstance(names, dict) for name in names
        } - known - {"optimizer.params", "lr_scheduler.params"} == RELEASES_ALONE[schema] - {"model_base"}
        (last,) = [
            line for line in page.splitlines() if line.startswith("Accepted from the authors' files, setting nothing")
        ]
        assert {part.split(" (")[0] for part in last.split(": ")[1].split("; ") if " (" in part} == RELEASES_ALONE[
            schema
        ]
        assert not known & RELEASES_ALONE[schema]

    def test_each_command_has_the_keys_that_it_reads_alone(self, capsys):
        sample, evaluation, training = (
            keys_of(help_page(schema, capsys, "-h")) for schema in (SampleConfig, EvalConfig, TrainConfig)
        )
        assert evaluation > sample
        assert {"table.rows", "evaluation.rollouts", "execute.timeout_s"} <= evaluation - sample
        assert {key for key in sample if key.startswith("experiment.")} == {
            "experiment.project",
            "experiment.output_dir",
        }
        assert "experiment.resume_from" in training

    def test_it_shows_the_values_that_files_and_command_line_give(self, tmp_path, capsys):
        yaml_file(tmp_path, "rollout: {block_size: 8, max_token: 33}", "base.yaml")
        file = yaml_file(tmp_path, "base: base.yaml\nrollout: {max_token: 44}")
        page = help_page(SampleConfig, capsys, file, "rollout.seed=5", "--help")
        assert f"Keys, as {file} rollout.seed=5 sets them:" in page
        for line in ("block_size = 8 (default 4): ", "max_token = 44 (default 2000): ", "seed = 5 (default 0): "):
            assert f"\n  rollout.{line}" in page
        assert "\n  rollout.top_k = 0: " in page
        assert "\n  rollout.resume = true: " in page

    def test_values_that_follow_from_others_are_shown_as_they_follow(self, capsys):
        page = help_page(TrainConfig, capsys, f"config={ROOT / 'configs/td.yaml'}", "--help")
        assert "\n  dataset.optimization_data = SDAR-4B-Chat-MATH_train_renamed (required): " in page
        page = help_page(TrainConfig, capsys, "dataset.optimization_data=${nothing}", "--help")
        assert "\n  dataset.optimization_data = ${nothing} (required): " in page
        assert "\n  model.pretrained_model = required: " in page

    @pytest.mark.parametrize("mistake", ["rollout.nonsense=1", "config=nowhere.yaml", "rollout.seed=x"])
    def test_a_mistake_beside_it_is_told_and_the_page_shown(self, mistake, capsys):
        page = help_page(SampleConfig, capsys, mistake, "--help")
        told = next(
            line for line in page.split("\n") if line.startswith("Keys, with their defaults, as there is a mistake (")
        )
        assert mistake.split("=")[0 if "config" not in mistake else 1] in told


def test_what_another_command_reads_is_unknown_to_one_that_does_not():
    for schema, key in (
        (SampleConfig, "table.rows=[model]"),
        (SampleConfig, "execute.timeout_s=1"),
        (EvalConfig, "experiment.resume_from=latest"),
        (SampleConfig, "evaluation.rollouts=x.json"),
    ):
        message = refusal(lambda *arguments, schema=schema: load_config(schema, [*arguments], "", ""), key)
        assert "expected a known key" in message


def test_the_best_recipe_is_the_arenas_row_and_that_of_larger_models():
    def loaded(*arguments: str) -> TrainConfig:
        needed = ["model.pretrained_model=m", "dataset.optimization_data=d"]
        return load_config(TrainConfig, [*arguments, *needed], "", "")

    toy = loaded("config=configs/toy/best.yaml")
    rows = load_config(ArenaConfig, ["config=configs/toy/arena/random.yaml"], "", "").rows
    row = loaded(*rows["t3d_certainty_random"].split())
    assert (toy.training, toy.model.random_ratio) == (row.training, row.model.random_ratio)
    given = loaded("config=configs/best.yaml")
    assert given.model.random_ratio == toy.model.random_ratio
    best, large, paper = toy.training, given.training, loaded("config=configs/t3d.yaml").training
    changed = {field for field in vars(paper) if getattr(large, field) != getattr(paper, field)}
    assert changed == {"ddo_level", "fake_expectation", "reference_temp", "beta", "lambda_path", "certainty_weight"}
    assert all(getattr(large, field) == getattr(best, field) for field in changed)


def test_without_a_configuration_nothing_is_written_into_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folders = {project_folder(load_config(schema, [], "", "")) for schema in (SampleConfig, EvalConfig)}
    assert folders == {ROOT / "sdar_sample", ROOT / "eval"}
    assert not [folder for folder in folders if folder.exists()]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("table.rows=[model, model]", "table.sections, rows and columns"),
        ("table.columns=[block]", "different ones of base, model, dataset"),
        ("table.figures=[accuracy]", "table.figures: expected different ones of acc, "),
        ("table.strategies=[random]", "table.strategies"),
        ("table.unranked=[teacher, SFT]", r"table.unranked: .* found \['SFT'\]"),
        ("table.baseline=SFT", "table.baseline: expected different ones of teacher"),
        ("table.rows=[model,model]", r"found \['model', 'model'"),
        ("table.name=/a/b", "table.name: expected a name, not a path, found '/a/b'"),
        ("table.labels.SFT=x", r"table.labels: .* found \['SFT'\]"),
        ("table.checkpoints.x=y table.labels.x=teacher", "table.labels: expected a name of its own for each row"),
        ("table.level=2", "table.level"),
        ("table.decodings=[[4, 8]]", "table.decodings"),
        ("table.average=true table.rows=[dataset] table.columns=[model]", "table.average"),
    ],
)
def test_a_table_that_cannot_be_laid_out_is_refused(override, complaint):
    grid = ["table.checkpoints={teacher: somewhere}", "table.decodings=[[4, 1]]"]
    overrides = [f"table.{part}" for part in override.removeprefix("table.").split(" table.")]
    with pytest.raises(ConfigError, match=complaint):
        load_config(EvalConfig, [*grid, *overrides], "", "")
