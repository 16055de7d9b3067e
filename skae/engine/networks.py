"""The networks of one training: the one to be returned, and one for each fold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skae._members import set_to_slices, stack_if_fused
from skae._module import Autoencoder
from skae._rows import Batch, Rows
from skae.bottlenecks import Squeeze
from skae.engine.objective import Objective

# Weight of the rows of a fold in the training of the network that is judged by them. It
# is not 0, since a batch may consist of such rows, over which a penalty takes a mean.
HELD_OUT_WEIGHT = 1e-20

# Number of entries of the held-out rows, over all networks, up to which the networks of
# all folds are evaluated at once.
MAX_EVALUATED_AT_ONCE = 2**20


class MemberFolds(NamedTuple):
    """Rows that the members of an ensemble do not learn.

    Attributes
    ----------
    fold : ndarray of int of shape (n_train,)
        Fold of each training row, from 0.
    group : ndarray of int of shape (n_members,)
        Fold whose rows each member does not learn; -1 for none.
    """

    fold: np.ndarray
    group: np.ndarray

    def is_learnt(self, where: Any) -> np.ndarray:
        """Return the `is_learnt` of a batch of rows, (n_rows, n_members)."""
        return (self.fold[where][:, None] != self.group).astype(np.float32)


class Split(NamedTuple):
    """Rows to train on, and held-out rows.

    Attributes
    ----------
    train : Rows
        Rows that train the network.
    held_out : Rows or None
        Rows by which the network is judged; None without early stopping.
    fold : ndarray of int of shape (n_train,) or None
        Fold of each training row, from 0, if early stopping is cross-validated. For
        each fold a further network is trained on the rows of the other folds, and
        judged by those of the fold. `held_out` is None then.
    members : MemberFolds or None
        Training rows that the members of an ensemble do not learn, if any.
    """

    train: Rows
    held_out: Rows | None
    fold: np.ndarray | None = None
    members: MemberFolds | None = None

    @property
    def is_judged(self) -> bool:
        """Whether there are held-out rows."""
        return self.held_out is not None or self.fold is not None

    @property
    def n_folds(self) -> int:
        """Number of folds, 0 if early stopping is not cross-validated."""
        return 0 if self.fold is None else int(self.fold.max()) + 1

    def held_out_parts(self) -> list[Rows]:
        """Return the held-out rows, those of each fold separately."""
        if self.fold is None:
            return [] if self.held_out is None else [self.held_out]
        folds = range(self.n_folds)
        return [self.train.subset(np.flatnonzero(self.fold == i)) for i in folds]

    def training_parts(self) -> list[Rows]:
        """Return the rows that are not held out, for each of `held_out_parts`."""
        if self.fold is None:
            return [self.train]
        folds = range(self.n_folds)
        return [self.train.subset(np.flatnonzero(self.fold != i)) for i in folds]

    def fold_weight(self) -> np.ndarray | None:
        """Return the weights of the rows in the training of each fold's network.

        Of shape (n_train, n_folds); None without folds. The mean is the same for each
        fold, so that their losses are means over the rows that a network is trained on.
        """
        if self.fold is None:
            return None
        is_held_out = self.fold[:, None] == np.arange(self.n_folds)
        weight = self.train.weight[:, None]
        kept = np.where(is_held_out, 0, weight)
        kept *= weight.sum() / kept.sum(axis=0)
        return np.where(is_held_out, HELD_OUT_WEIGHT, kept)


class Network(NamedTuple):
    """A network and the objective that its training minimises."""

    module: Autoencoder
    objective: Objective

    def row_losses(self, batch: Batch, progress: Tensor) -> Tensor:
        """Return the objective of each row, a mean over the members, (n_rows,).

        With ordered components, of shape (n_rows, n_widths), see `Objective`.
        """
        losses = self.objective(self.module, batch, progress)
        return losses if self.module.visible is None else losses.mean(dim=0)

    def row_losses_of_widths(self, batch: Batch, progress: Tensor) -> Tensor:
        """Return the objective with 1, 2, ... components, (n_rows, n_components)."""
        widths = range(1, self.module.n_components + 1)
        losses = [
            self.objective.of_width(self.module, batch, progress, width)
            for width in widths
        ]
        return torch.stack(losses, dim=1)


class Networks:
    """The networks of one training, which take their steps side by side.

    If early stopping is cross-validated, copies of the network, one for each fold, are
    trained side by side with it: in each step all of them receive the same batch, in
    which the rows of a fold have no weight for the network of this fold. All networks
    so take the same number of steps with the same learning rates, and the epoch with
    the lowest loss on the held-out rows of all folds is that of the returned network.

    Dense networks are computed at once: their weights are slices of stacked weights,
    and an optimizer updates these.

    Parameters
    ----------
    module : Autoencoder
        The network to be returned; trained in place.
    objective : Objective
    split : Split
    may_stack : bool, default=True
        Whether dense networks are computed at once.

    Attributes
    ----------
    first : Network
        The network to be returned.
    folds : list of Network
        The network of each fold; empty unless early stopping is cross-validated.
    judged : list of tuple of Network and Rows
        The networks that are judged, and their held-out rows.
    trained : list of Network
        Networks whose parameters are trained: `first` and `folds`, or their stack.
    """

    def __init__(
        self,
        module: Autoencoder,
        objective: Objective,
        split: Split,
        *,
        may_stack: bool = True,
    ):
        self.first = Network(module, objective)
        self.folds = [Network(*copy.deepcopy(self.first)) for _ in range(split.n_folds)]
        parts = split.held_out_parts()
        if self.folds:
            self.judged = list(zip(self.folds, parts, strict=True))
        else:
            self.judged = [(self.first, rows) for rows in parts]
        self._stack = None
        if self.folds and may_stack:
            self._stack = _stack([self.first, *self.folds])
        self.trained = [self.first, *self.folds]
        if self._stack is not None:
            self.trained = [self._stack]
            for module, objective in self.folds:
                module.eval()
                objective.eval()
        self._addresses: list[int] = []
        self.share_weights()

    @property
    def parts(self) -> list[nn.Module]:
        """Modules and objectives whose parameters are trained."""
        return [part for network in self.trained for part in network]

    @property
    def all_parts(self) -> list[nn.Module]:
        """Modules and objectives of all networks, and of their stack."""
        networks = [self.first, *self.folds]
        networks += [] if self._stack is None else [self._stack]
        return [part for network in networks for part in network]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for part in self.parts for p in part.parameters()]

    def set_training_mode(self, training: bool) -> None:
        """Set the mode of what is trained; stacked networks remain in eval mode."""
        for part in self.parts:
            if part.training != training:
                part.train(training)

    def copy_first(self) -> None:
        """Give the networks of the folds the weights of the first.

        Also whether they are trained: callbacks change both in the first network alone.
        """
        for part, *others in zip(self.first, *self.folds, strict=True):
            for other in others:
                other.load_state_dict(part.state_dict())
        self.freeze_as_first()

    def keep_changes(self) -> None:
        """Store weights of the first network whose memory has been replaced.

        Afterwards they are slices of the stacked weights again.
        """
        if self._stack is None:
            return
        parameters = list(self.first.module.parameters())
        values = [parameter.data for parameter in parameters]
        self._addresses.clear()
        self.share_weights()
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)

    def freeze_as_first(self) -> None:
        """Train the parameters of which the first network's equivalents are trained."""
        needed = [p.requires_grad for p in self.first.module.parameters()]
        for module, _ in self.trained:
            for parameter, is_trained in zip(module.parameters(), needed, strict=True):
                if parameter.requires_grad != is_trained:
                    parameter.requires_grad_(is_trained)

    def share_weights(self) -> None:
        """Let all networks use the memory of the stacked weights, which may be moved.

        To be called before they are used, after steps have been taken.
        """
        if self._stack is None:
            return
        stack = self._stack.module
        addresses = [parameter.data_ptr() for parameter in stack.parameters()]
        if addresses == self._addresses:
            return
        self._addresses = addresses
        modules = [network.module for network in (self.first, *self.folds)]
        set_to_slices([module.encoder for module in modules], stack.encoder)
        set_to_slices([module.decoder for module in modules], stack.decoder)

    def share_gradients(self) -> list[list[Tensor | None]]:
        """Set the gradients of all networks to slices of the stacked gradients.

        Returns
        -------
        shared : list of list of Tensor or None
            For each stacked parameter the gradients of the networks.
        """
        shared: list[list[Tensor | None]] = []
        for whole, parameters in self._stacked_parameters():
            shared.append([None] * len(parameters))
            for i, parameter in enumerate(parameters):
                if whole.grad is not None:
                    shared[-1][i] = whole.grad[i].reshape(parameter.shape)
                parameter.grad = shared[-1][i]
        return shared

    def collect_gradients(self, shared: list[list[Tensor | None]]) -> None:
        """Give the stacked gradients the values of those that have been replaced.

        A parameter that has no gradient in any network is not updated. If it has one in
        some networks only, it is zero in the others.

        Parameters
        ----------
        shared : list of list of Tensor or None
            What `share_gradients` returned.
        """
        pairs = self._stacked_parameters()
        for (whole, parameters), slices in zip(pairs, shared, strict=True):
            gradients = [parameter.grad for parameter in parameters]
            if all(new is old for new, old in zip(gradients, slices, strict=True)):
                continue
            if all(gradient is None for gradient in gradients):
                whole.grad = None
                continue
            if whole.grad is None:
                whole.grad = torch.zeros_like(whole)
            for gradient, part in zip(gradients, whole.grad, strict=True):
                if gradient is None:
                    part.zero_()
                else:
                    part.copy_(gradient.reshape(part.shape))

    def _stacked_parameters(
        self,
    ) -> list[tuple[nn.Parameter, tuple[nn.Parameter, ...]]]:
        """Return each stacked parameter, and its slices, which are the networks'."""
        if self._stack is None:
            return []
        modules = [network.module for network in (self.first, *self.folds)]
        own = zip(*(module.parameters() for module in modules), strict=True)
        return list(zip(self._stack.module.parameters(), own, strict=True))

    def release(self) -> None:
        """Give the first network weights of its own, instead of slices of a stack."""
        if self._stack is not None:
            self.share_weights()
            for parameter in self.first.module.parameters():
                parameter.data = parameter.data.contiguous().clone()

    # Training

    def loss(
        self, batch: Batch, mean_loss: Callable[[Network, Batch], Tensor]
    ) -> Tensor:
        """Return the loss of the first network, of shape ().

        Its gradient is that of the sum of the losses of all networks, which have no
        weights in common.

        Parameters
        ----------
        batch : Batch
        mean_loss : callable
            Returns the mean objective of a network over the rows of a batch; of a
            stack, that of each network, of shape (n_networks,), by weights of shape
            (n_networks, n_rows).
        """
        if batch.fold_weight is None:
            return mean_loss(self.first, batch)
        weights = [batch.weight, *batch.fold_weight.unbind(dim=1)]
        if self._stack is not None:
            n_networks = len(weights)
            target, observed = (
                None if t is None else t.expand(n_networks, *t.shape)
                for t in (batch.target, batch.observed)
            )
            assert target is not None
            repeated = Batch(target, observed, torch.stack(weights))
            loss, *others = mean_loss(self._stack, repeated).unbind()
        else:
            loss, *others = (
                mean_loss(network, batch._replace(weight=weight))
                for network, weight in zip(self.trained, weights, strict=True)
            )
        rest = torch.stack(others).sum()
        return loss + (rest - rest.detach())  # adds 0

    # Held-out rows

    def stacked_held_out(self) -> tuple[Rows, list[int]] | None:
        """Return the rows of all networks, to be evaluated by the stack.

        Returns
        -------
        rows : Rows
            As many rows for each network, first those of the first network, which are
            not held out.
        sizes : list of int
            Numbers of held-out rows of the folds. The rows after these are repeated.
        """
        if self._stack is None:
            return None
        parts = [rows for _, rows in self.judged]
        sizes = [len(rows) for rows in parts]
        n_rows = max(sizes)
        if (1 + len(parts)) * n_rows * parts[0].n_features > MAX_EVALUATED_AT_ONCE:
            return None
        padded = [np.resize(np.arange(size), n_rows) for size in sizes]
        index = [
            rows.index[where] if rows.index is not None else where
            for rows, where in zip(parts, padded, strict=True)
        ]
        return Rows(parts[0].X, np.concatenate([index[0], *index])), sizes

    def stacked_row_losses(
        self, batch: Batch, sizes: list[int], progress: Tensor
    ) -> Tensor:
        """Return the `row_losses` of the held-out rows of all folds, in their order.

        Parameters
        ----------
        batch : Batch
            The rows that `stacked_held_out` returns.
        sizes : list of int
        progress : Tensor of shape ()
        """
        assert self._stack is not None
        n_networks = 1 + len(self.folds)
        target, observed = (
            None if t is None else t.unflatten(0, (n_networks, -1))
            for t in (batch.target, batch.observed)
        )
        assert target is not None
        rows = Batch(target, observed, batch.weight[: target.shape[1]])
        losses = self._stack.objective(self._stack.module, rows, progress)
        pairs = zip(losses[1:], sizes, strict=True)
        return torch.cat([of_fold[:size] for of_fold, size in pairs])


def _stack(networks: Sequence[Network]) -> Network | None:
    """Return networks as one of stacked weights, or None if they cannot be stacked."""
    module, objective = networks[0]
    is_plain = (
        type(module.bottleneck) is Squeeze
        and module.noise is None
        and module.visible is None
        and objective.penalty is None
        and objective.corruption is None
        and not list(objective.parameters())
    )
    if not is_plain:
        return None
    encoder = stack_if_fused([network.module.encoder for network in networks])
    decoder = stack_if_fused([network.module.decoder for network in networks])
    if encoder is None or decoder is None:
        return None
    stacked: Any = copy.copy(module)
    stacked._modules = dict(module._modules, encoder=encoder, decoder=decoder)
    return Network(stacked, objective)
