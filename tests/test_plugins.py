"""The folder is the registry, ours and the user's."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from edgetl import plugins
from edgetl.errors import BadInput
from edgetl.extras import MODULES, install

OWN = '''"""Do nothing."""

from typing import Literal

from edgetl.recipe.schema import Context, Step


class Nothing(Step):
    use: Literal["nothing"] = "nothing"

    def run(self, net, ctx: Context):
        return net


PLUGIN = Nothing
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "nothing.py").write_text(OWN)
    (tmp_path / "methods" / "_helper.py").write_text("")
    monkeypatch.setenv(plugins.FOLDERS_VARIABLE, str(tmp_path))
    return tmp_path


def test_every_file_is_a_plugin_and_hidden_ones_are_not() -> None:
    assert {"optin", "lora", "finetune", "distill"} <= set(plugins.names("methods"))
    assert not [name for name in plugins.names("methods") if name.startswith("_")]


def test_a_folder_of_the_users_adds_to_ours(own: Path) -> None:
    assert "nothing" in plugins.names("methods")
    assert "_helper" not in plugins.names("methods")
    assert plugins.find("methods", "nothing")().use == "nothing"
    assert plugins.source("methods", "nothing") == own / "methods" / "nothing.py"


def test_a_users_file_with_the_name_of_ours_is_refused(own: Path) -> None:
    (own / "methods" / "optin.py").write_text("PLUGIN = 1\n")
    with pytest.raises(BadInput, match=r"two plugins are the method 'optin': .*methods/optin and .*/methods/optin.py"):
        plugins.find("methods", "optin")


@pytest.mark.parametrize(
    ("changed", "counts"), [("nothing.py", True), ("_helper.py", True), ("_new.py", True), ("other.py", False)]
)
def test_a_step_is_made_anew_where_its_code_or_a_helper_changed(own: Path, changed: str, *, counts: bool) -> None:
    before = plugins.digest("methods", "nothing")
    with (own / "methods" / changed).open("a") as f:
        f.write("# changed\n")
    assert (plugins.digest("methods", "nothing") != before) == counts


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(BadInput, match="no method 'finetun'") as caught:
        plugins.find("methods", "finetun")
    assert caught.value.fix == "did you mean 'finetune'?"
    with pytest.raises(BadInput, match="no data source 'zzz'") as caught:
        plugins.find("data", "zzz")
    assert "digits" in caught.value.fix


def test_the_extras_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    assert set(MODULES) == set(declared) - {"dev"}
    assert install("peft.tuners.lora") == 'pip install "edgetl[compress]"'
    assert install("requests") is None
    assert os.sep not in "".join(MODULES)
