"""The meter's command: figures of the model's own samples, kept by content, in the file that the report shows."""

import json
import re
from dataclasses import asdict

import pytest

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.factorisation import Factorisation, gaps, mean_gap
from t3d.errors import DataError, UserError
from t3d.evaluation import meter as measuring
from t3d.prompts import build_prompt
from t3d.rollout import run as rollout_module
from t3d.sdar.checkpoint import load_model, load_tokenizer
from t3d.tables.meter import Meter, Meters, asked, run
from t3d.tables.report import main as write_report
from t3d.trajectory import Trajectory


@pytest.fixture
def table(settings, checkpoint):
    """A grid of one model under two names, by three decodings of two block sizes, and one that costs nothing."""
    return settings(
        f"table.checkpoints={{teacher: {checkpoint}, student: {checkpoint}}}",
        "table.decodings=[[4, 1], [8, 4], [4, 2], [4, 4]]",
        "table.labels={teacher: The teacher}",
    )


def test_a_table_of_models_has_the_figures_of_each_ones_own_samples(table, checkpoint, dataset, tmp_path, capsys):
    """Whatever the configuration says of temperature and strategy (0.7, by confidence)."""
    path = run(table)
    assert path == tmp_path / "results/meter-table.json"
    stored = json.loads(path.read_text())
    rows = [(row["label"], row["block_size"], row["denoising_steps"]) for row in stored["meter"]]
    assert rows == [
        *(("The teacher", 4, 1), ("The teacher", 4, 2), ("The teacher", 8, 4)),
        *(("student", 4, 1), ("student", 4, 2), ("student", 8, 4)),
    ]
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    prompts = [build_prompt(tokenizer, item, "math")[1] for item in json.loads(dataset.read_text())]
    mask_id = int(tokenizer.mask_token_id)
    config = DecodingConfig(
        *(mask_id, 4, 4, table.rollout.max_token),
        temperature=1.0,
        remasking_strategy="sequential",
        stop_ids=(int(tokenizer.eos_token_id),),
    )
    pairs = [(done.prompt_ids, done.response_ids) for done in decode(model, prompts, config)]
    printed = capsys.readouterr().out
    for row, steps in zip(stored["meter"], (1, 2), strict=False):
        expected = vars(mean_gap(gaps(model, pairs, mask_id, 4, [steps])[steps]))
        assert row["figures"] == pytest.approx(expected, rel=1e-3)
        assert row["figures"]["num_samples"] == len(prompts)
        shown = f"| The teacher | {dataset.stem} | 4/{steps} | {row['figures']['nats_per_block']:.4f} ± "
        assert shown in printed
    assert stored["config"]["table"]["labels"] == {"teacher": "The teacher"}


def test_a_second_run_computes_nothing_and_ends_the_same(table, monkeypatch, tmp_path):
    before = run(table).read_bytes()
    monkeypatch.setattr(measuring, "gaps", lambda *_, **__: pytest.fail("scored again"))
    assert run(table).read_bytes() == before
    for kept in (tmp_path / "meter").glob("gaps-*.json"):  # killed while it scored
        kept.unlink()
    monkeypatch.undo()
    monkeypatch.setattr(rollout_module, "_decode", lambda *_: pytest.fail("decoded again"))
    assert run(table).read_bytes() == before


def test_a_single_model_is_measured_as_it_is_evaluated_or_at_every_halving(settings, checkpoint, dataset):
    name = f"evaluation.checkpoint_path={checkpoint}"
    few = [
        one.few
        for size, steps in ((4, 3), (8, 8), (7, 7))
        for one in asked(settings(name, f"rollout.block_size={size}", f"rollout.denoising_steps_per_block={steps}"))
    ]
    assert few == [[3], [4, 2, 1], [3, 1]]
    own = ("evaluation.limit=3", "rollout.num_response_per_task=2", "rollout.denoising_steps_per_block=4")
    path = run(settings(name, *own))
    assert path.name == f"meter-eval-{checkpoint.name}-{dataset.stem}-b4.json"
    rows = json.loads(path.read_text())["meter"]
    assert [row["denoising_steps"] for row in rows] == [2, 1]
    assert {row["figures"]["num_samples"] for row in rows} == {3}  # problems: responses to one are not independent


def test_responses_that_fail_are_left_out_and_where_all_do_it_is_an_error(settings, checkpoint, monkeypatch, tmp_path):
    def spoilt(first: int):
        def decoded(model, prompts, *rest, **options):
            for place in range(len(prompts)):
                if place < first:
                    yield place, Trajectory(prompts[place], [], [], "error", 1, 1, "spoilt")
                else:
                    yield place, Trajectory(prompts[place], [5, 6], [1, 2], "length", 2, 2)

        return decoded

    given = [f"evaluation.checkpoint_path={checkpoint}", "evaluation.limit=3", "rollout.denoising_steps_per_block=1"]
    monkeypatch.setattr("t3d.rollout.worker.iter_decode", spoilt(1))
    [row] = json.loads(run(settings(*given)).read_text())["meter"]
    assert (row["figures"]["num_samples"], row["figures"]["num_tokens"]) == (2, 4)
    monkeypatch.setattr("t3d.rollout.worker.iter_decode", spoilt(3))
    with pytest.raises(DataError, match="expected a response that could be decoded, found spoilt"):
        run(settings(*given, "rollout.seed=1"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["evaluation.checkpoint_path=null"],
            "evaluation.checkpoint_path: expected a model folder or hub id, found null",
        ),
        (["evaluation.rollouts=some.json"], "evaluation.rollouts: expected null"),
        (["rollout.block_size=1", "rollout.denoising_steps_per_block=1"], "rollout.block_size: expected at least 2"),
        (["evaluation.num_node=2"], "evaluation.num_node: expected 1 for the meter"),
        (["rollout.tensor_parallel_size=2"], "rollout.tensor_parallel_size: expected 1 for the meter"),
        (
            ["table.checkpoints={a: CHECKPOINT}", "table.decodings=[[4, 4]]"],
            "table.checkpoints, table.decodings: expected",
        ),
    ],
)
def test_what_cannot_be_measured_is_named_before_any_work(settings, checkpoint, tmp_path, given, message):
    words = [word.replace("CHECKPOINT", str(checkpoint)) for word in given]
    with pytest.raises(UserError, match=message):
        run(settings(f"evaluation.checkpoint_path={checkpoint}", *words))
    assert not (tmp_path / "meter").exists()
    assert not (tmp_path / "results").exists()


def test_the_report_shows_figures_beside_the_accuracy_of_the_same_decoding(write_results, tmp_path):
    results = [write_results("a", [[True], [False]]), write_results("b", [[True], [True]])]
    figures = Factorisation(0.51234, 0.0321, 0.125, 0.75, 2, 12, 48)
    meters = [
        Meter(f"models/{name}", f"models/{name}", "digest", dataset, 4, steps, figures)
        for name, dataset, steps in (("a", "Problems", 1), ("a", "Problems", 2), ("b", "Others", 1))
    ]
    path, report = tmp_path / "meter-table.json", tmp_path / "report.html"
    path.write_text(json.dumps(asdict(Meters(meters, {}, {}))))
    write_report([*map(str, results), str(path), "--out", str(report)])
    rows = re.findall(r"<tr>(.*0\.5123 ± 0\.0321.*)</tr>", report.read_text())
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    shown = ["2", "0.5123 ± 0.0321", "0.1250", "0.7500"]
    assert cells == [
        ["models/a", "Problems", "4", "1", *shown, "50.00 ± 35.36 (low_confidence_static)"],
        ["models/a", "Problems", "4", "2", *shown, "--"],
        ["models/b", "Others", "4", "1", *shown, "--"],
    ]
    assert 'href="#meters"' in report.read_text()
    path.write_text(path.read_text().replace("nats_per_token", "other"))
    with pytest.raises(DataError, match=r"meter-table\.json, field meter, entry 0\.figures\.nats_per_token"):
        write_report([str(path), "--out", str(report)])
