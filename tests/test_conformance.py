"""The conformance runner itself: it counts, compares, and fails when outcomes differ."""

import re

import pytest

_C = pytest.importorskip("framelift._C")
from framelift import conformance  # noqa: E402


def test_a_small_module_agrees(capsys):
    pytest.importorskip("test.test_dictcomps")
    assert conformance.main(["test_dictcomps"]) == 0
    out = capsys.readouterr().out
    assert "test_dictcomps" in out and re.search(r" (9|10)/\1 +\1/\1 ", out) and "differing 0" in out


def test_differences_are_found():
    plain = {"outcomes": {"a": "pass", "b": "pass"}, "texts": {}}
    ours = {"outcomes": {"a": "pass", "b": "error"}, "texts": {"b": "ValueError: x"}}
    assert conformance.compare(plain, ours) == [("b", "pass", "error", "ValueError: x")]


def test_a_module_that_cannot_run_fails(capsys):
    assert conformance.main(["test_there_is_no_such_module"]) == 1
    assert "died" in capsys.readouterr().out
