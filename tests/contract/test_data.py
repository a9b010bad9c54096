"""Every data plugin keeps the promises of a Source."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from edgetl.errors import BadInput
from edgetl.examples import PARTS, Source
from edgetl.network.family import Prep
from edgetl.operations import check_operations
from edgetl.plugins import find, names

NAMES = names("data")


def required(plugin: type[Source]) -> list[str]:
    return [name for name, field in plugin.model_fields.items() if field.is_required() and name != "use"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_frozen_source_named_like_its_file(name):
    plugin = find("data", name)
    assert issubclass(plugin, Source)
    assert plugin.model_fields["use"].default == name
    assert plugin.model_config["frozen"]
    assert plugin.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_unknown_keys_and_missing_required_ones_are_named(name):
    plugin = find("data", name)
    with pytest.raises(ValidationError, match="shape_of_things"):
        plugin(use=name, shape_of_things=1)
    for field in required(plugin):
        with pytest.raises(ValidationError, match=field):
            plugin(use=name)


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_not_there_is_bad_input_with_a_fix(name, tmp_path):
    plugin = find("data", name)
    fields = required(plugin)
    if not fields:
        pytest.skip("it needs no file")
    with pytest.raises(BadInput) as caught:
        plugin(use=name, **{field: str(tmp_path / "nowhere") for field in fields}).examples()
    assert "nowhere" in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_embedded_data_is_whole_and_the_same_each_time(name):
    plugin = find("data", name)
    if required(plugin):
        pytest.skip("it needs a file")
    source = plugin()
    e, again = source.examples(), source.examples()
    assert e.digest == again.digest
    assert set(e.parts) <= set(PARTS)
    assert "train" in e.parts
    assert (e.y.min(), e.y.max()) == (0, len(e.labels) - 1)
    assert e.read(0) == again.read(0)
    check_operations(source.operations(e.raw, Prep()), e.raw)


def test_no_plugin_imports_more_than_the_core_at_its_top():
    code = f"""
import sys
from edgetl.plugins import find
import edgetl.prepare
[find("data", name) for name in {NAMES!r}]
print(sorted({{"torch", "transformers", "onnx", "sklearn", "datasets", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
