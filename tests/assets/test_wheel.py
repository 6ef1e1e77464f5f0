"""What an installation holds besides code: models and examples, found without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the build reads; linked, so that it leaves nothing in the checkout.
NEEDED = ("app.py", "assets", "cache_db", "LICENSE", "mrr", "pyproject.toml", "README.md",
          "requirements.txt", "ui")  # fmt: skip
LOOK = """
import json, app
from mrr.build import bundled
from ui.examples import load_examples
examples = load_examples()
print(json.dumps({
    "app": app.__file__,
    "models": [str(bundled(name)) for name in ("tiny-reranker", "tiny-embedder")],
    "pages": [str(page.file) for page in examples.pages if page.file.is_file()],
    "n_pages": len(examples.pages),
    "n_samples": len(examples.samples),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel would put into site-packages."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        (source / name).symlink_to(ROOT / name)
    build = source / "site"
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py",
         "--build-lib", str(build)],
        check=True, capture_output=True, timeout=120, cwd=source,
    )  # fmt: skip
    return build


def test_an_installation_finds_its_own_models_and_examples(installed: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOOK],
        check=True, capture_output=True, text=True, timeout=120, cwd=installed.parent.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["n_pages"] == len(found["pages"]) > 0 and found["n_samples"] > 0
    for path in (found["app"], *found["models"], *found["pages"]):
        assert Path(path).is_relative_to(installed)


def test_an_installation_has_every_file_of_the_models(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}

    assert files(installed / "mrr_assets" / "models") == files(ROOT / "assets" / "models")
