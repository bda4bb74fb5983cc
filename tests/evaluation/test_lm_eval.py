"""The harness's model `t3d`; skipped where the extra `eval` is not installed."""

import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from t3d.decoding.likelihood import iter_likelihoods
from t3d.errors import CheckpointError, DataError, UserError
from t3d.evaluation import lm_eval
from t3d.evaluation.lm_eval import T3DLM
from t3d.prompts import user_message
from t3d.rollout import rollout
from t3d.toy.problems import generate

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "t3d/toy/teacher"
GREEDY = {"until": ["<|im_end|>"], "do_sample": False, "temperature": 0.0}


def run_harness(cache: Path, *arguments: str) -> subprocess.CompletedProcess:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "t3d.evaluation.lm_eval", "--model", "t3d", *arguments],
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def write_tasks(folder: Path, problems: list[dict[str, Any]]) -> None:
    """TinyMath three ways: worked out, as a choice between two answers, and as text to predict."""
    data = folder / "problems.json"
    data.write_text(json.dumps(problems))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": user_message({"question": "{{question}}"}, "math"),
    }
    boxed = [{"function": "regex", "regex_pattern": r"\\boxed\{(.*?)\}"}, {"function": "take_first"}]
    tasks = {
        "tinymath": {
            "output_type": "generate_until",
            "doc_to_target": "{{ground_truth_answer}}",
            "generation_kwargs": {**GREEDY, "max_gen_toks": 96},
            "filter_list": [{"name": "boxed", "filter": boxed}],
            "metric_list": [{"metric": "exact_match"}],
        },
        "tinymath_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{[answer, question]}}",
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
        "tinymath_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))


@pytest.mark.slow
def test_the_harness_gets_the_texts_and_grades_of_an_evaluation(settings, tmp_path):
    problems = list(itertools.islice(generate("test"), 6))
    write_tasks(tmp_path, problems)
    config = settings(
        f"evaluation.checkpoint_path={TEACHER}",
        f"evaluation.eval_dataset={tmp_path / 'problems.json'}",
        "rollout.denoising_steps_per_block=1",
        "rollout.temperature=0",
        "rollout.max_token=96",
    )
    rollouts = json.loads(rollout(config).read_text())
    ended = run_harness(
        tmp_path / "cache",
        *("--model_args", f"pretrained={TEACHER},block_size=4,denoising_steps=1"),
        *("--tasks", "tinymath,tinymath_choice,tinymath_text", "--include_path", str(tmp_path)),
        *("--apply_chat_template", "--log_samples", "--device", "cpu", "--output_path", str(tmp_path / "out")),
    )
    assert ended.returncode == 0, ended.stderr
    (samples,) = tmp_path.glob("out/*/samples_tinymath_2*.jsonl")
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [record["resps"] for record in records] == [[item["full_output"]] for item in rollouts]
    assert [record["arguments"]["gen_args_0"]["arg_0"] for record in records] == [item["prompt"] for item in rollouts]
    (path,) = tmp_path.glob("out/*/results_*.json")
    results = json.loads(path.read_text())["results"]
    right = [item["extracted_output"] == [item["ground_truth_answer"]] for item in rollouts]
    assert results["tinymath"]["exact_match,boxed"] == pytest.approx(sum(right) / 6)
    assert results["tinymath_choice"]["acc,none"] == 1.0
    assert 1 < results["tinymath_text"]["word_perplexity,none"] < 1e4


@pytest.mark.slow
def test_a_mistake_in_the_model_arguments_is_answered_in_one_line(tmp_path):
    write_tasks(tmp_path, list(itertools.islice(generate("test"), 1)))
    ended = run_harness(
        tmp_path / "cache",
        *("--model_args", f"pretrained={TEACHER},blok_size=4"),
        *("--tasks", "tinymath", "--include_path", str(tmp_path)),
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: command line: blok_size: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("raised", [ConnectionError, HfHubHTTPError.__bases__[0], LocalEntryNotFoundError])
def test_data_out_of_reach_is_one_line(monkeypatch, raised):
    def without_network():
        raise raised("Couldn't reach 'openai/gsm8k'\non the Hub")

    monkeypatch.setattr(lm_eval, "cli_evaluate", without_network)
    expected = "the tasks' data, from the Hugging Face hub or the copy of an earlier download (HF_HOME)"
    with pytest.raises(DataError) as caught:
        lm_eval.main([])
    assert str(caught.value) == f"lm-eval: expected {expected}, found Couldn't reach 'openai/gsm8k' on the Hub"


def test_releases_that_look_for_plug_ins_find_the_model():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    group = "lm_eval.models"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    assert {name: EntryPoint(name, value, group).load() for name, value in declared.items()} == {"t3d": T3DLM}


def generate_requests(prompts: list[str], settings: dict[str, Any], repeats: int = 1) -> list[Instance]:
    """What the harness asks: a document's repetitions are the same object."""
    single = [
        Instance("generate_until", {}, (prompt, settings), 0, ("task", doc_id, repeats))
        for doc_id, prompt in enumerate(prompts)
    ]
    return [request for request in single for _ in range(repeats)]


@pytest.fixture(scope="module")
def teacher() -> T3DLM:
    return T3DLM(pretrained=str(TEACHER), device="cpu", max_new_tokens=64)


@pytest.fixture
def prompts(teacher) -> list[str]:
    turns = [user_message(problem, "math") for problem in itertools.islice(generate("test"), 4)]
    return [teacher.apply_chat_template([{"role": "user", "content": turn}]) for turn in turns]


class TestGeneration:
    def test_sampled_responses_are_those_of_a_rollout_whatever_is_decoded_beside_them(self, settings, checkpoint):
        config = settings("rollout.num_response_per_task=2", "rollout.seed=3")
        rollouts = json.loads(rollout(config).read_text())
        model = T3DLM(
            pretrained=str(checkpoint), device="cpu", denoising_steps=2, temperature=0.7, seed=3, max_active=3
        )
        texts = [item["prompt"] for item in rollouts]
        requests = generate_requests(texts, GREEDY | {"max_gen_toks": 14}, repeats=2)
        expected = [text for item in rollouts for text in item["full_output"]]
        assert model.generate_until(requests, disable_tqdm=True) == expected
        later = requests[6:] + generate_requests(["else"], GREEDY | {"max_gen_toks": 5})
        assert model.generate_until(later, disable_tqdm=True)[:-1] == expected[6:]

    def test_the_tasks_sampling_holds_where_the_model_arguments_are_silent(self, teacher, prompts):
        greedy = teacher.generate_until(generate_requests(prompts, GREEDY), disable_tqdm=True)
        hot = {"until": [], "do_sample": True, "temperature": 1.5, "top_k": 3}
        sampled = teacher.generate_until(generate_requests(prompts, hot), disable_tqdm=True)
        assert sampled != greedy
        insisting = T3DLM(pretrained=str(TEACHER), device="cpu", max_new_tokens=64, temperature=1.5, top_k=3)
        assert insisting.generate_until(generate_requests(prompts, GREEDY), disable_tqdm=True) == sampled

    @pytest.mark.parametrize("stops", [["."], [" \\"], ["nowhere", "boxed", " \\"]])
    def test_texts_end_before_the_first_stop_string(self, teacher, prompts, stops):
        whole = teacher.generate_until(generate_requests(prompts, GREEDY), disable_tqdm=True)
        cut = teacher.generate_until(generate_requests(prompts, GREEDY | {"until": stops}), disable_tqdm=True)
        places = [min(text.find(stop) for stop in stops if stop in text) for text in whole]
        assert cut == [text[:place] for text, place in zip(whole, places, strict=True)]
        assert cut != whole

    def test_every_request_has_its_own_limit(self, teacher, prompts):
        requests = [generate_requests(prompts, GREEDY | {"max_gen_toks": limit})[limit] for limit in (1, 2, 3)]
        texts = teacher.generate_until(requests, disable_tqdm=True)
        assert [len(teacher.tok_encode(text)) for text in texts] == [1, 2, 3]

    def test_a_setting_that_the_decoder_lacks_is_refused(self, teacher):
        request = generate_requests(["1 + 1"], GREEDY | {"repetition_penalty": 1.2})
        with pytest.raises(UserError, match=r"generation_kwargs: expected only until, .* found repetition_penalty"):
            teacher.generate_until(request)


class TestLikelihood:
    def score(self, model: T3DLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ((_, found),) = iter_likelihoods(model.model, [(context, continuation)], model.model.config.mask_token_id, 4)
        return tuple(found)

    def test_continuations_are_scored_in_their_contexts(self, teacher, prompts):
        continuations = [" 12 apples.", "Here 3 * 4 = 12.", "\n", "<|im_end|>"]
        pairs = list(zip([*prompts[:3], ""], continuations, strict=True))
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        found = teacher.loglikelihood(requests, disable_tqdm=True)
        for (context, continuation), (log_prob, is_greedy) in zip(pairs, found, strict=True):
            # The harness moves a context's last white space to the continuation: one token boundary, same text.
            whole = teacher.tok_encode(context + continuation)
            start = len(teacher.tok_encode(context.rstrip()))
            before = whole[:start] or [teacher.eot_token_id]
            expected = self.score(teacher, before, whole[start:])
            assert (log_prob, is_greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])

    def test_a_text_longer_than_the_context_is_scored_in_windows(self, checkpoint):
        model = T3DLM(pretrained=str(checkpoint), device="cpu")
        model.model.config.max_position_embeddings = 18  # whole blocks: 16
        text = "Ada has 3 boxes of 4 pens. " * 5
        tokens = model.tok_encode(text)
        windows = [([model.eot_token_id], tokens[:15])]
        for start in range(15, len(tokens), 15):
            continuation = tokens[start : start + 15]
            windows.append((tokens[start + len(continuation) - 16 : start], continuation))
        assert len(windows) == 3
        expected = sum(self.score(model, *window)[0] for window in windows)
        requests = [Instance("loglikelihood_rolling", {}, (words,), 0) for words in (text, "")]
        assert model.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx([expected, 0.0], abs=1e-3)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"blok_size": 4}, "nearest: block_size"),
            ({"block_size": "four"}, "block_size: expected int"),
            ({"block_size": 0}, "block_size: expected at least 1, found 0"),
            ({"denoising_steps": 8}, "denoising_steps: expected 1 to block_size = 4, found 8"),
            ({"dtype": "int8"}, "dtype: expected one of auto"),
            ({"device": "abacus"}, "a device of this machine, found abacus"),
            ({"pretrained": "nowhere"}, r"nowhere: expected a model folder \(.*\) or a hub id"),
            ({"pretrained": None}, "pretrained: "),
        ],
    )
    def test_a_wrong_one_is_named(self, checkpoint, arguments, said):
        with pytest.raises(UserError, match=said):
            T3DLM(**({"pretrained": str(checkpoint)} | arguments))

    def test_the_harnesss_own_options_fill_in_what_the_model_arguments_leave_out(self, checkpoint):
        defaults = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
        built = T3DLM.create_from_arg_obj({"pretrained": str(checkpoint)}, defaults)
        assert (built.settings.max_active, built.settings.device) in [(32, "auto"), (32, "cuda:0")]
        built = T3DLM.create_from_arg_string(f"pretrained={checkpoint}", {"batch_size": "8", "device": "cpu"})
        assert (built.settings.max_active, built.settings.device) == (8, "cpu")
        arguments = {"pretrained": str(checkpoint), "max_active": 2, "device": "cpu"}
        built = T3DLM.create_from_arg_obj(arguments, defaults | {"batch_size": 8})
        assert (built.settings.max_active, built.settings.device) == (2, "cpu")

    def test_a_checkpoint_without_chat_template_is_named(self, checkpoint):
        model = T3DLM(pretrained=str(checkpoint), device="cpu")
        model.tokenizer.chat_template = None
        with pytest.raises(CheckpointError, match="expected a chat template, found none"):
            model.apply_chat_template([{"role": "user", "content": "1 + 1"}])
