"""Run tests with an installed Stor: PYTHON tests/installed.py SITE_PACKAGES PYTEST_ARGUMENT...

PYTHON is the one of the installation. What the tests need and it does not have, such as pytest,
comes from the directory SITE_PACKAGES, which is looked into last.
"""

import os
import sys


def main(site_packages, *arguments):
    site_packages = os.path.abspath(site_packages)
    sys.path[0] = os.getcwd()
    sys.path.append(site_packages)

    import pytest  # noqa: PLC0415 - only now can it be found

    import stor  # noqa: PLC0415

    if not stor.__file__.startswith(sys.prefix + os.sep):
        sys.exit(f"the tests would run with {stor.__file__}, not with what is in {sys.prefix}")
    return pytest.main(["-p", "no:cacheprovider", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
