"""A run to damage."""

import pytest

from tests.records import damage


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """As damage.make."""
    return damage.make(tmp_path_factory.mktemp("kept") / "run")
