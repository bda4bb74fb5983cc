import pickle

import pytest

from t3d.errors import ConfigError, DataError, UserError


def test_a_mistake_names_place_expectation_and_finding():
    error = DataError("file.json, record 3", "a list", None)
    assert str(error) == "file.json, record 3: expected a list, found None"
    assert (error.where, error.expected, error.found) == ("file.json, record 3", "a list", "None")


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError])
def test_a_mistake_can_be_sent_to_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("here", "this", 3)))
    assert type(error) is kind
    assert str(error) == "here: expected this, found 3"
    assert (error.where, error.expected, error.found) == ("here", "this", "3")
