"""The threshold that scaled confidences are nearly always above."""

import logging

import pytest

from t3d.decoding import DecodingConfig
from t3d.decoding.config import _warn_once, warn_of_threshold


@pytest.fixture(autouse=True)
def nothing_said():
    _warn_once.cache_clear()


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, True),
        ({"confidence": "raw"}, False),
        ({"temperature": 0.0}, False),
        ({"temperature": 1.0}, False),
        ({"remasking_strategy": "low_confidence_static"}, False),
    ],
)
def test_the_trap_is_named_once_with_its_cure(caplog, changes, warns):
    settings = {"temperature": 0.1, "remasking_strategy": "low_confidence_dynamic"} | changes
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warn_of_threshold(DecodingConfig(47, **settings))
    assert len(caplog.records) == warns
    assert not warns or "rollout.confidence=raw" in caplog.text
