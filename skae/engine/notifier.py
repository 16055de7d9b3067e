"""Notification of callbacks, and of the networks that follow what these change."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from skorch.callbacks import Callback, ParamMapper
from torch import nn

from skae.engine.averaging import WeightAverage
from skae.engine.net import AutoencoderNet
from skae.engine.networks import Networks

# End of messages about a change of parts of the network.
_NOT_FOLLOWED = (
    "The networks of the folds, by which early stopping judges it on few rows, do not "
    "follow such a change. Use early_stopping=True, by which rows are held out instead."
)


class Notifier:
    """Notifies skorch callbacks during a training, and follows their changes.

    Callbacks may change the weights of the network to be returned. Before the first
    step, the networks of the folds then receive the same weights. Later, when they must
    not learn from the rows of their fold, a `ParamMapper` is called for each of them;
    after the change of any other callback, a warning says that they do not follow. A
    moving average of the weights begins anew.

    Parameters
    ----------
    net : AutoencoderNet
    networks : Networks
        The networks of the training; the first is the module of `net`.

    Attributes
    ----------
    average : WeightAverage or None
        Average of the weights of `networks`.
    has_trained : bool
        Whether a step has been taken.
    """

    def __init__(self, net: AutoencoderNet, networks: Networks):
        self.average: WeightAverage | None = None
        self.has_trained = False
        self._net = net
        self._networks = networks
        self._parameters = self._named_parameters()
        self._modules = self._named_modules()
        self._classes = {name: type(m) for name, m in self._modules.items()}
        self._has_warned = False

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a method of the net itself, then of all callbacks."""
        getattr(self._net, method_name)(self._net, **kwargs)
        self.call(method_name, self._net.callbacks_with(method_name), **kwargs)

    def call(
        self, method_name: str, callbacks: Sequence[Callback], **kwargs: Any
    ) -> None:
        """Call a method of the given callbacks.

        Raises
        ------
        StopTraining
            If a callback ends the training.
        ValueError
            If a callback has replaced, added or removed a parameter that would not be
            trained or, where networks of folds have to follow, a parameter or a module.
        """
        for callback in callbacks:
            before = self._copy_of_weights()
            self._net.call_back(method_name, [callback], **kwargs)
            self._check_structure(callback)
            if not self._are_equal(before):
                self._follow(callback, method_name, kwargs)

    def _copy_of_weights(self) -> list[torch.Tensor]:
        """Return the weights of the first network, if others have to follow them."""
        is_averaged = self.average is not None and self.average.is_kept
        is_followed = self._networks.folds or is_averaged
        return [t.clone() for t in self._weights()] if is_followed else []

    def _weights(self) -> list[torch.Tensor]:
        parts = self._networks.first
        values = [t for part in parts for t in part.state_dict().values()]
        return [t for t in values if isinstance(t, torch.Tensor)]

    def _are_equal(self, before: list[torch.Tensor]) -> bool:
        return not before or all(map(torch.equal, before, self._weights()))

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        module = self._networks.first.module
        return dict(module.named_parameters(remove_duplicate=False))

    def _named_modules(self) -> dict[str, nn.Module]:
        names = "module_", "criterion_"
        return {
            name: module
            for prefix, part in zip(names, self._networks.first, strict=True)
            for name, module in part.named_modules(None, prefix, False)
        }

    def _check_structure(self, callback: Callback) -> None:
        """Raise ValueError if parts have changed that are not trained or followed."""
        who = f"callbacks: {type(callback).__name__}"
        parameters = self._named_parameters()
        if self._networks.folds:
            self._check_modules(who)
        else:
            groups = self._net.optimizer_.param_groups
            known = {id(p) for group in groups for p in group["params"]}
            known.update(map(id, self._parameters.values()))
            new = {name: p for name, p in parameters.items() if id(p) not in known}
            parameters = self._parameters | new
        for what, name in _changes(self._parameters, parameters):
            if what == "replaced":
                raise ValueError(
                    f"{who} has replaced the parameter {name!r} of the network by "
                    "another object, which the optimizer does not train. Change its "
                    "values in place, such as by parameter.copy_(values) under "
                    "torch.no_grad()."
                )
            if self._networks.folds:
                raise ValueError(
                    f"{who} has {what} the parameter {name!r} of the network. "
                    f"{_NOT_FOLLOWED}"
                )
            raise ValueError(
                f"{who} has added the parameter {name!r} to the network, which the "
                "optimizer does not train. Add it to the optimizer in the same call, "
                "by net.optimizer_.add_param_group({'params': [parameter]})."
            )

    def _check_modules(self, who: str) -> None:
        """Raise ValueError if modules differ from those of the folds."""
        modules = self._named_modules()
        for what, name in _changes(self._modules, modules):
            raise ValueError(f"{who} has {what} the module {name!r}. {_NOT_FOLLOWED}")
        for name, module in modules.items():
            if type(module) is not self._classes[name]:
                raise ValueError(
                    f"{who} has replaced the class of the module {name!r}. "
                    f"{_NOT_FOLLOWED}"
                )

    def _follow(
        self, callback: Callback, method_name: str, kwargs: dict[str, Any]
    ) -> None:
        """Let the other networks and the average follow a change of weights."""
        networks = self._networks
        networks.keep_changes()
        if networks.folds and not self.has_trained:
            networks.copy_first()
        elif networks.folds and isinstance(callback, ParamMapper):
            for network in networks.folds:
                with self._net.using(*network):
                    self._net.call_back(method_name, [callback], **kwargs)
        elif networks.folds and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"callbacks: {type(callback).__name__} has changed weights of the "
                "network during its training. The networks of the folds, by which "
                "early stopping judges it on few rows, do not follow such a change. "
                "Use early_stopping=True, by which rows are held out instead, or "
                "ParamMapper of skorch.",
                UserWarning,
                stacklevel=2,
            )
        if self.average is not None:
            self.average.restart()


def _changes(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Yield how each of some named objects has changed, and its name."""
    for name in after:
        if name not in before:
            yield "added", name
        elif after[name] is not before[name]:
            yield "replaced", name
    for name in before:
        if name not in after:
            yield "removed", name
