"""Facts about `skae.show_versions`."""

import configparser
import re
from importlib.metadata import version
from pathlib import Path

import skae
from skae import _show_versions

SETUP = Path(__file__).parents[1] / "setup.cfg"


def test_prints_versions_of_the_package_and_its_dependencies(capsys):
    skae.show_versions()
    printed = capsys.readouterr().out
    assert f"skae: {skae.__version__}\n" in printed
    assert f"  torch: {version('torch')}\n" in printed
    assert "devices: cpu" in printed
    assert re.search(r"  openmp.*: \d+ threads\n", printed)


def test_names_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(_show_versions, "OPTIONAL", ("a-package-that-nobody-has",))
    skae.show_versions()
    assert "a-package-that-nobody-has: not installed" in capsys.readouterr().out


def test_all_required_packages_are_named():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    required = setup["options"]["install_requires"]
    assert set(_show_versions.REQUIRED) == set(re.findall(r"(?m)^([\w-]+)", required))
