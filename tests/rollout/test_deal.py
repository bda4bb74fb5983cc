from t3d.rollout.job import Request
from t3d.rollout.run import FEW_PROBLEMS, deal


def requests(problems: int, responses: int) -> list[Request]:
    total = problems * responses
    return [Request(number, number // responses, number, "", []) for number in range(total)]


def test_each_problem_goes_to_one_process_with_all_its_responses():
    parts = deal(requests(21, 3)[5:], 2)
    assert sorted(request.number for part in parts for request in part) == list(range(5, 63))
    items = [{request.item for request in part} for part in parts]
    assert not items[0] & items[1]
    assert abs(len(items[0]) - len(items[1])) <= 1
    assert [request.number for request in parts[0]] == sorted(request.number for request in parts[0])


def test_responses_to_few_problems_keep_all_processes_busy():
    parts = deal(requests(FEW_PROBLEMS * 4 - 1, 8), 4)
    assert {len(part) for part in parts} == {(FEW_PROBLEMS * 4 - 1) * 2}
    assert deal(requests(1, 5), 3)[2] == requests(1, 5)[2::3]
    assert deal([], 0) == []
