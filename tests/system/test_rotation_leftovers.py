"""Many rotations leave nothing behind; `make bench ONLY=rotation_leftovers,rotation_memory` does
more of them.
"""

from __future__ import annotations

import pytest

from tests.system.rotations import rotate_many

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_sixty_rotations_leave_nothing_behind() -> None:
    course = rotate_many("fmany", 60)
    assert course.left == {}
    # From so few one sees only what is lost at every rotation.
    assert course.growth(after=20) < 64 << 10
