"""The documents name files and targets that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_REPOSITORY = re.compile(r"`((?:src|tests|python|tools|docs|requirements|bench|include|cli|fuzz)/[\w./-]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document):
    text = document.read_text()
    named = [ROOT / path for path in IN_REPOSITORY.findall(text)]
    linked = [document.parent / path for path in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert [str(p) for p in named + linked if not p.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", document.read_text())) <= targets
