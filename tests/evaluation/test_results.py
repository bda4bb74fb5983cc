import json
from dataclasses import replace

import pytest

from t3d.errors import DataError
from t3d.evaluation.metrics import Metrics
from t3d.evaluation.results import (
    BadRecord,
    Decoding,
    KnownBad,
    LeftOut,
    Results,
    read_results,
    to_json,
    write_results,
)

RESULTS = Results(
    dataset="MATH500",
    checkpoint="models/a",
    decoding=Decoding(4, 1, "sequential", 0.1, 0, 1.0, 7, 0.9, 2000),
    metrics=Metrics(3, 1 / 3, 0.27, 30.5, grading={"graded": 3, "error": 1}),
    environment={"torch": "2"},
    config={"rollout": {"seed": 7}},
    left_out=[LeftOut(1, 0, "error: no sandbox")],
    known_bad=KnownBad(True, [BadRecord(0, "Check.")]),
    leakage="trained on the test",
)
OLDEST = {
    **{"dataset": "MATH500", "checkpoint": None, "n": 3, "acc": 0.5, "stderr": 0.1, "environment": {}, "config": {}},
    **{"block_size": None, "denoising_steps": None, "remasking_strategy": None},
}


def test_what_is_written_is_read_back(tmp_path):
    write_results(tmp_path / "r.json", RESULTS)
    assert read_results(tmp_path / "r.json") == RESULTS


def test_the_file_is_flat():
    """Scripts of users read `acc` and `block_size` at the top."""
    values = to_json(RESULTS)
    assert (values["block_size"], values["seed"], values["n"], values["avg_len"]) == (4, 7, 3, 30.5)
    assert values["left_out"] == [{"record": 1, "response": 0, "reason": "error: no sandbox"}]
    assert values["known_bad"] == {"repaired": True, "records": [{"record": 0, "question": "Check."}]}
    assert not {"decoding", "metrics"} & values.keys()


def test_files_of_older_versions_are_read(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(OLDEST))
    read = read_results(tmp_path / "r.json")
    assert read.metrics == Metrics(3, 0.5, 0.1)
    assert (read.decoding, read.left_out, read.leakage) == (Decoding(None, None, None), [], None)


def test_a_field_of_a_newer_version_is_not_kept(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({**to_json(RESULTS), "of_tomorrow": 1}))
    assert read_results(tmp_path / "r.json") == RESULTS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"acc": "high"}, "field acc: expected a number, found string"),
        ({"block_size": 4.5}, "field block_size: expected a whole number or null, found number"),
        ({"n": ...}, "field n: expected a whole number, found nothing"),
        ({"config": None}, "field config: expected an object, found null"),
        ({"left_out": [{"record": 1}]}, "field left_out, entry 0.response: expected a whole number, found nothing"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, change, said):
    path = tmp_path / "r.json"
    values = to_json(RESULTS) | change
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    with pytest.raises(DataError) as caught:
        read_results(path)
    assert str(caught.value) == f"{path}, {said}"


def test_a_model_without_a_name_is_called_after_its_answers():
    assert replace(RESULTS, rollouts="r.json").model == "models/a"
    assert replace(RESULTS, checkpoint=None, rollouts="r.json").model == "r.json"
