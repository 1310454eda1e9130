"""Everything is in pyproject.toml; native extensions are declared here as they come."""

from setuptools import setup

setup()
