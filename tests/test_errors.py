from t3d.errors import DataError


def test_a_mistake_names_place_expectation_and_finding():
    error = DataError("file.json, record 3", "a list", None)
    assert str(error) == "file.json, record 3: expected a list, found None"
    assert (error.where, error.expected, error.found) == ("file.json, record 3", "a list", "None")
