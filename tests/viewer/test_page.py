import json
import re

import pytest

from t3d.errors import CheckpointError, DataError, UserError
from t3d.viewer.__main__ import main


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL).group(1))


def test_a_page_of_one_file(write_rollouts, tmp_path):
    graded = {
        "correctness": [[True], [False]],
        "logprob": [[[-0.5] * 2], [[-1.0] * 2]],
        "extracted_output": [["1"], ["2"]],
    }
    note = {"checkpoint": "t3d/toy/teacher", "fingerprint": {"block_size": 4, "denoising_steps": 2, "temperature": 0.1}}
    path = write_rollouts("outputs.json", ["ab", "cd"], note, **graded)
    main([str(path), "--tokenizer", "t3d/toy/teacher", "-o", str(tmp_path / "new" / "page.html")])
    content = data_of((tmp_path / "new" / "page.html").read_text())
    assert content["sources"][0]["title"] == "teacher, 4/2"
    assert ["temperature", "0.1"] in content["sources"][0]["about"]
    first, second = (entry["r"][0] for entry in content["entries"])
    assert "".join(content["pieces"][piece] for piece in first["t"]) == "ab"
    assert (first["v"], second["v"], second["e"], first["l"]) == (True, False, "2", [-0.5, -0.5])
    assert (first["s"], first["f"], first["n"], first["r"]) == ([1, 2], 3, 2, "stop")


def test_two_files_meet_by_problem_and_response(write_rollouts, tmp_path):
    one, other = write_rollouts("a.json", ["ab", "cd", "x"]), write_rollouts("b.json", ["ab", "ce"])
    out = tmp_path / "page.html"
    main([str(one), str(other), "-o", str(out)])
    content = data_of(out.read_text())
    assert [[response is not None for response in entry["r"]] for entry in content["entries"]] == [[True, True]] * 2 + [
        [True, False]
    ]
    assert content["agreement"]["same"] == 0.5


def test_the_same_problem_twice_stays_two_entries(write_rollouts, tmp_path):
    path = write_rollouts("a.json", ["ab", "cd"], question=["same?", "same?"])
    main([str(path), "-o", str(tmp_path / "page.html")])
    assert len(data_of((tmp_path / "page.html").read_text())["entries"]) == 2


def test_a_failed_response_keeps_its_place(write_rollouts, tmp_path):
    failed = {"error": [[None], ["no finite logits"]], "finish_reason": [["stop"], ["error"]]}
    path = write_rollouts("a.json", ["ab", "cd"], **failed)
    main([str(path), "-o", str(tmp_path / "page.html")])
    second = data_of((tmp_path / "page.html").read_text())["entries"][1]["r"][0]
    assert second["x"] == "no finite logits"
    assert "t" not in second


def test_text_that_is_markup_stays_data(write_rollouts, tmp_path):
    text = "</script><script>alert(1)</script><!--"
    path = write_rollouts("a.json", [text])
    main([str(path), "-o", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2  # the data's and the page's own
    assert "<!--" not in page
    content = data_of(page)
    assert "".join(content["pieces"][piece] for piece in content["entries"][0]["r"][0]["t"]) == text


@pytest.mark.parametrize(
    ("note", "changes", "error", "complaint"),
    [
        ({}, {}, DataError, "expected --tokenizer FOLDER"),
        ({"checkpoint": "/nowhere"}, {}, CheckpointError, "/nowhere"),
        (None, {"step_map": [[[1]]]}, DataError, "record 0, response 0, field step_map"),
        (None, {"logprob": [[[-1.0]]]}, DataError, "record 0, response 0, field logprob: expected 2 numbers"),
    ],
)
def test_bad_input_writes_nothing(write_rollouts, tmp_path, note, changes, error, complaint):
    path = write_rollouts("a.json", ["ab"], note, **changes)
    with pytest.raises(error, match=complaint):
        main([str(path), "-o", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("limit", ["0", "many"])
def test_a_limit_is_a_number_of_problems(write_rollouts, limit):
    with pytest.raises(UserError, match="limit"):
        main([str(write_rollouts("a.json", ["ab"])), "--limit", limit])


def test_text_for_a_terminal(write_rollouts, capsys):
    path = write_rollouts("a.json", ["ab\x1b[31mc", "second"])
    main([str(path), str(write_rollouts("b.json", ["ab", "second"])), "--text", "1"])
    shown = capsys.readouterr().out
    assert "Problem 0?" in shown
    assert "Problem 1?" not in shown
    assert "\x1b" not in shown  # neither the model's, nor ours where nothing shows colours
    assert "50.0 % the same token for token" in shown
    assert " forwards, ended by stop" in shown


def test_forwards_that_nobody_counted_are_not_told(write_rollouts, capsys):
    main([str(write_rollouts("a.json", ["ab"], num_forwards=[[0]])), "--text", "1"])  # as an import writes it
    assert "2 steps, ended by stop" in capsys.readouterr().out
