"""Of several workers, one takes all of these tests, which need no machine. They are the largest group and so begin at
once, while another worker makes the image and boots the machine that all others come from.
"""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.xdist_group("services"))
