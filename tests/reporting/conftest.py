"""What several tests of the report read."""

import pytest

from tests.reporting.made_up import groups, write_table


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """The groups of a small table."""
    folder = tmp_path_factory.mktemp("table")
    write_table(folder)
    return groups(folder)
