"""Stored objects: the version that wrote them, and parameters that it did not have."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import sklearn
from sklearn import exceptions

from skae._version import __version__

# Key of the version in the state of a pickled estimator.
VERSION_KEY = "_skae_version"


class InconsistentVersionWarning(exceptions.InconsistentVersionWarning):
    """Issued when an estimator is loaded that another version of skae has stored.

    Parameters
    ----------
    estimator_name : str
        Name of the estimator's class.
    current_skae_version : str
        The version that is installed.
    original_skae_version : str
        The version that has stored the estimator.
    """

    def __init__(
        self,
        *,
        estimator_name: str,
        current_skae_version: str,
        original_skae_version: str,
    ):
        super().__init__(
            estimator_name=estimator_name,
            current_sklearn_version=sklearn.__version__,
            original_sklearn_version="unknown",
        )
        self.current_skae_version = current_skae_version
        self.original_skae_version = original_skae_version

    def __str__(self) -> str:
        return (
            f"{self.estimator_name} was stored by skae {self.original_skae_version}, "
            f"but skae {self.current_skae_version} loads it. It may not work, or give "
            "other results: fit it again, or load it with the version that stored it."
        )


def warn_of_other_version(name: str, version: Any, stacklevel: int = 2) -> None:
    """Warn if an object was stored by another version of skae than this one.

    Parameters
    ----------
    name : str
        Name of the estimator's class.
    version : str or None
        The version that has stored it; None if it did not record its version.
    stacklevel : int, default=2
        As in :func:`warnings.warn`, for the caller of this function.
    """
    if version == __version__:
        return
    original = "of an unknown, older version" if version is None else str(version)
    warning = InconsistentVersionWarning(
        estimator_name=name,
        current_skae_version=__version__,
        original_skae_version=original,
    )
    warnings.warn(warning, stacklevel=stacklevel + 1)


def default_parameters(kind: type) -> dict[str, Any]:
    """Return the defaults of all constructor parameters of a class and its bases."""
    defaults: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            defaults.update(
                (name, parameter.default)
                for name, parameter in parameters.items()
                if parameter.default is not parameter.empty
            )
    return defaults


class StoredParametersMixin:
    """Give a parameter its default if the version that stored an object lacked it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**default_parameters(type(self)), **state})
