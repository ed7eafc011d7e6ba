import pytest

from fairlead.errors import FairleadError
from fairlead.vidur.offline import check_installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with the marker `vidur` need the extra of that name."""
    try:
        check_installed()
    except FairleadError as error:
        skip = pytest.mark.skip(reason=str(error))
        for item in items:
            if item.get_closest_marker("vidur"):
                item.add_marker(skip)
