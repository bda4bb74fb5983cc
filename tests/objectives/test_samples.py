import torch

from t3d.objectives.samples import group_mean


def test_group_mean_divides_by_the_rows_of_its_group() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 5.0])
    assert group_mean(values, torch.tensor([0, 2, 0, 2]), 4).tolist() == [3.5, 0, 3.5, 0]
    assert group_mean(values[:0], torch.tensor([], dtype=torch.long), 2).tolist() == [0, 0]
