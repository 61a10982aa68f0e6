import pytest

from exact_server import ExactServer


@pytest.fixture
def server():
    with ExactServer() as one:
        yield one
