"""How Stor is installed; its version is the one of the package."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
INIT = (HERE / "stor" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "([^"]+)"', INIT)[1]

setup(
    name="stor",
    version=VERSION,
    description="Keep and serve files by SHA-256 over HTTP, on mirrored disks",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Artistic-1.0-Perl OR GPL-1.0-or-later",
    packages=[
        "stor",
        "stor.cli",
        "stor.client",
        "stor.disk",
        "stor.http",
        "stor.index",
        "stor.jobs",
        "stor.mirror",
        "stor.processes",
        "stor.s3",
        "twisted.plugins",
    ],
    package_data={"stor": ["py.typed"]},
    entry_points={"console_scripts": ["stor = stor.cli.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "attrs>=24.1",
        "bcrypt>=4.0",
        "boto3>=1.35",
        "crc32c>=2.7",
        "hyperlink>=21.0",
        "klein>=24.8",
        "prometheus_client>=0.20",
        "pymemcache>=4.0",
        "statsd>=4.0",
        "treq>=24.9",
        # 25.5 can leave form bodies alone, which curl --data-binary sends.
        "Twisted>=25.5",
        "werkzeug>=3.0",
        "zope.interface>=6.0",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "mypy-zope>=1.0",
            "pytest>=8.0",
            "pytest-twisted>=1.14",
            "pytest-xdist>=3.6",
            "PyYAML>=6.0",
            "ruff>=0.5",
        ],
    },
)
