"""The examples of docs/rl.md: each is taken from the page and run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python (\w+)\n(.*?)^```", (ROOT / "docs" / "rl.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "worldmodel" / "assets" / "labmaze" / "config.json").is_file(), reason="no weights")
@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_an_example_of_the_page_runs(title: str, code: str) -> None:
    exec(compile(code, f"docs/rl.md:{title}", "exec"), {})


def test_the_page_has_its_examples() -> None:
    assert [title for title, _ in BLOCKS] == ["many", "torch", "fork", "imagine", "loop"]
