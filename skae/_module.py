"""The PyTorch module: scaler, encoder, bottleneck, decoder and output activation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skae._completion import N_DIRECTIONS, Completion
from skae._layers import (
    FirstComponents,
    StackedLinear,
    as_function,
    forward_hooks,
    with_tangents,
)
from skae._members import (
    encode_visible,
    linear_end,
    linear_end_tangents,
    starts_linear,
    visible_function,
)
from skae._neighbors import NearestRows
from skae._noise import Noise
from skae._prefixes import Prefixes
from skae._refine import Linearizer, refine, steps_per_jacobian
from skae._rows import BLOCK_ENTRIES, Batch, Rows
from skae._sparse import (
    FeatureBlock,
    Projection,
    SparseRows,
    squared_distances,
    summed_losses,
)
from skae.bottlenecks import Squeeze
from skae.losses import Loss, count_observed, observed_mean

# Most refinement steps for held-out rows during training, with a new Jacobian at each
# step and with updates of it. They identify the best epoch as well as ten, and training
# takes a seventh less time.
MAX_EXACT_VALIDATION_STEPS, MAX_VALIDATION_STEPS = 2, 3

# Largest absolute value in the scaled space that the network receives. Its square is
# finite in float32, in which values beyond 1.8e19 would overflow.
LIMIT = 1e16

# Largest offset c of sparse rows S - 1 c' in the scaled space, in one feature and as
# the mean square over all: rounding errors of float32 are that many times larger.
MAX_OFFSET, MAX_MEAN_SQUARE = 1e3, 1e2

# Step of a code, in standard deviations of its component, from which the effect of the
# component is computed by central differences. In float64 the relative error due to
# the curvature of the decoder, and that due to rounding, are then about 1e-9.
EFFECT_STEP = 2.0**-14


def max_validation_refinements(n_components: int) -> int:
    """Return the most refinement steps for held-out rows during training."""
    is_exact = steps_per_jacobian(n_components) == 1
    return MAX_EXACT_VALIDATION_STEPS if is_exact else MAX_VALIDATION_STEPS


class Propagation(NamedTuple):
    """Result of one forward pass, in the scaled space.

    With several members, `H`, `raw` and `term` have a first axis of length n_members.
    With ordered components, `raw` and `term` have a first axis in training, that of the
    numbers of components with which each row is decoded; of sparse rows, `raw` is a
    list.
    Rows that are sparse remain so where the network allows it.

    Attributes
    ----------
    target : Tensor or SparseRows of shape (n_samples, n_features)
        Scaled rows, missing entries replaced as by :class:`Scaler`.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False where an entry is missing; None if none is, and for `SparseRows`.
    encoder_input : Tensor or SparseRows of shape (n_samples, n_features)
        The target, or a corrupted version of it. Each encoder receives a part of it.
    H : Tensor of shape (n_samples, encoder_width)
        Encoder output.
    raw : Tensor of shape (n_samples, n_features), LinearOutput or list of LinearOutput
        Decoder output before the output activation.
    term : Tensor of shape (n_samples,) or None
        Term that the bottleneck adds to the objective; None if there is none.
    """

    target: Any
    observed: Tensor | None
    encoder_input: Any
    H: Tensor
    raw: Any
    term: Tensor | None


class Autoencoder(nn.Module):
    """Network that reconstructs its input from a code.

    Inputs and reconstructions are in the units of the data. The network works in the
    scaled space, in which the loss is measured as well. Encoder, bottleneck and
    decoder may be stacks of several members. A member's encoder may receive a subset
    of the features, but its decoder reconstructs all of them. Reconstructions are
    then the mean over the members.

    Parameters
    ----------
    scaler : Scaler
        Maps between the units of the data and the scaled space.
    encoder : torch.nn.Module
        Maps (n_samples, n_features) to (n_samples, encoder_width).
    bottleneck : Squeeze
        Maps (n_samples, encoder_width) to (n_samples, n_components).
    decoder : torch.nn.Module
        Maps (n_samples, n_components) to (n_samples, n_features).
    output : torch.nn.Module
        Activation after the decoder.
    loss : Loss
        Compares entries in the scaled space.
    n_components : int
        Width of the code.
    code_factor : ndarray of shape (n_components,), default=None
        Factors of the codes that `encode` returns and `decode` takes, relative to
        the codes inside the network. None means ones.
    draws_globally : bool, default=False
        Whether a part may draw from PyTorch's global random generator.
    visible : Tensor of bool of shape (n_members, 1, n_features), default=None
        True for the features that are input to the encoder of each member; the other
        features are set to their mean. None means one network with all features.
    noise : Noise, default=None
        Noise of the decoder, from which the likelihood of a row follows. None means
        that training minimises the loss itself.
    prefixes : Prefixes, default=None
        Numbers of components with which codes are decoded in training, if the
        components are ordered; None if they are not.

    Attributes
    ----------
    residual_scale : Tensor or None
        Mean absolute residual of each feature in the scaled space, by which the score
        divides residuals, of shape (n_features,) or (n_members, 1, n_features); None
        if the score is the loss.
    neighbors : NearestRows or None
        Training rows, the distances to which are a part of the score; None if they are
        not.
    max_refinements : int
        Number of optimisation steps by which a code is refined after encoding,
        outside training.
    max_validation_refinements : int
        Largest number of such steps for held-out rows during training.
    functions : dict or None
        Functions that compute the outputs of parts, if these cannot change; else None.
    completes_hidden : bool
        Whether the encoder receives entries that a corruption hides as it receives
        missing ones, completed from the others.
    has_zero_mean : bool
        Whether the scaled mean is zero in all features.
    widest_layer : int
        Largest number of values that a layer outputs for one row.
    work : int
        Number of multiplications for one row, in encoder and decoder.
    """

    functions: dict[str, Any] | None = None
    completes_hidden: bool = False

    bottleneck: Any
    code_factor: Tensor
    visible: Tensor | None
    residual_scale: Tensor | None
    neighbors: NearestRows | None
    prefixes: Prefixes | None

    def __init__(
        self,
        scaler: Scaler,
        encoder: nn.Module,
        bottleneck: Squeeze,
        decoder: nn.Module,
        output: nn.Module,
        loss: Loss,
        n_components: int,
        code_factor: np.ndarray | None = None,
        draws_globally: bool = False,
        visible: Tensor | None = None,
        noise: Noise | None = None,
        prefixes: Prefixes | None = None,
    ):
        super().__init__()
        self.scaler = scaler
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.output = output
        self.loss = loss
        self.n_components = n_components
        if code_factor is None:
            code_factor = np.ones(n_components)
        self.register_buffer("code_factor", torch.from_numpy(code_factor))
        self.draws_globally = draws_globally
        self.register_buffer("visible", visible)
        self.register_buffer("residual_scale", None)
        self.register_module("neighbors", None)
        self.noise = noise
        self.register_module("prefixes", prefixes)
        self.max_refinements = 0
        self.max_validation_refinements = max_validation_refinements(n_components)
        self.has_zero_mean = not self.scaler.scaled_mean.any()
        self.widest_layer, self.work = self._measure()

    def _measure(self) -> tuple[int, int]:
        """Compute `widest_layer` and `work` by a forward pass of one row."""
        widths = [len(self.scaler.mean), self.bottleneck.n_values]
        work = []

        def record(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            widths.append(output.numel())
            weight = getattr(layer, "weight", None)
            if isinstance(layer, StackedLinear):
                work.append(layer.weight.numel())
            elif isinstance(weight, Tensor) and weight.ndim > 1:
                is_transposed = getattr(layer, "transposed", False)
                positions = (inputs[0] if is_transposed else output).numel()
                work.append(weight.numel() * positions // len(weight))

        layers = [part for part in self.modules() if not list(part.children())]
        row = torch.zeros(1, len(self.scaler.mean), device=self.scaler.mean.device)
        with torch.no_grad(), forward_hooks(layers, record):
            self.eval().propagate(row)
        self.train()
        return max(widths), sum(work)

    def needs_float64(self, method: str) -> bool:
        """Whether a method is evaluated in float64 for rows in float32, too.

        The refinement of codes and discontinuous codes would magnify rounding errors.
        """
        if method not in ("encode", "quantize", "forward"):
            return False
        return self.max_refinements > 0 or not self.bottleneck.is_continuous

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("neighbors", "prefixes"):  # added after version 0.1
            self._modules.setdefault(name, None)

    @property
    def n_members(self) -> int:
        """Number of networks."""
        return 1 if self.visible is None else len(self.visible)

    @property
    def values_per_row(self) -> int:
        """Largest number of values held at a time for one row outside training."""
        if not self.max_refinements:
            return self.widest_layer
        return self.widest_layer * (1 + self.n_components)  # with its Jacobian

    @property
    def work_per_row(self) -> int:
        """Number of multiplications for one row in a pass outside of training."""
        if not self.max_refinements:
            return self.work
        return self.work * (1 + self.n_components)  # with the Jacobian

    @property
    def sizes(self) -> str:
        """The numbers that determine the memory for one row, for error messages."""
        return (
            f"{len(self.scaler.mean)} features, n_components={self.n_components} and "
            f"up to {self.values_per_row} values of a layer for one row"
        )

    # Sparse rows

    def trains_sparse(self, rows: Rows) -> bool:
        """Whether a training takes these rows as `SparseRows`."""
        return rows.are_sparse and self._compares_losses and self.has_precise(rows)

    def has_precise(self, rows: Rows) -> bool:
        """Whether products of these sparse rows have enough digits.

        Rows with large offsets or values would lose them, and missing entries are
        completed in dense rows. Products are computed on the CPU only.
        """
        scaler = self.scaler
        if scaler.completion is not None and np.isnan(rows.X.data).any():
            return False
        offset = scaler.shift / scaler.factor
        return (
            scaler.mean.device.type == "cpu"
            and float(offset.abs().max()) <= MAX_OFFSET
            and float(offset.square().mean()) <= MAX_MEAN_SQUARE
            and bool(np.nanmax(np.abs(rows.X.data), initial=0) < self._largest_sparse)
        )

    @property
    def reads_sparse(self) -> bool:
        """Whether the encoder can take `SparseRows`: it begins in a linear layer."""
        return self.loss.bounds is None and starts_linear(self.encoder)

    @property
    def compares_sparse(self) -> bool:
        """Whether `SparseRows` can be compared with their reconstructions, too.

        The decoder ends in a linear layer.
        """
        return (
            self.reads_sparse
            and self.noise is None
            and isinstance(self.output, nn.Identity)
            and linear_end(self.decoder) is not None
        )

    @property
    def _compares_losses(self) -> bool:
        """Whether the loss of `SparseRows` can be computed."""
        return self.compares_sparse and not self.loss.depends_on_column

    @property
    def _largest_sparse(self) -> float:
        """Bound of absolute values that are not cut off at `LIMIT` when scaled."""
        return float(LIMIT / 2 * self.scaler.factor.min())

    @property
    def sparse_block_size(self) -> int:
        """Number of sparse rows that are evaluated at once, outside of training steps.

        Products of the weights are computed once per block, which is large therefore.
        """
        return max(1, 4 * BLOCK_ENTRIES // self.widest_inner_layer)

    @property
    def widest_inner_layer(self) -> int:
        """Largest number of values of a layer for one row, apart from input and output.

        It is determined from the shapes of the weights.
        """
        n_features = len(self.scaler.mean)
        widths = [
            width
            for parameter in self.parameters()
            for width in parameter.shape
            if width != n_features
        ]
        return max([self.bottleneck.n_values, *widths]) * self.n_members

    def _densified(
        self, target: Any, observed: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        """Make sparse rows dense if a hook has been added to the network since."""
        if isinstance(target, SparseRows) and not self._compares_losses:
            return target.dense()
        return target, observed

    def forward(self, X: Tensor) -> Tensor:
        """Reconstruct rows of shape (n_samples, n_features)."""
        return self.scaler.unscale(
            self.mean_over_members(self.output(self.propagate(X).raw))
        )

    def encode(self, X: Tensor) -> Tensor:
        """Compute codes, of shape (n_samples, n_components).

        With several members, codes here and in the methods below have the shape
        (n_samples, n_members, n_components).
        """
        target, _, H = self._encode(X)
        Z = self._function("bottleneck")(H)
        Z = self._refined(Z, target, self.max_refinements)
        return self.rows_first(_to_finite(Z * self.code_factor, Z.dtype))

    def decode(self, Z: Tensor) -> Tensor:
        """Compute rows, of shape (n_samples, n_features), from codes.

        Codes of ordered components may be the first ones alone.
        """
        Z = self._members_first(Z / self.code_factor[: Z.shape[-1]].to(Z.dtype))
        return self.scaler.unscale(self.mean_over_members(self.output(self.decoder(Z))))

    def squared_effects(self, Z: Tensor, weight: Tensor, deviation: Tensor) -> Tensor:
        """Sum the squared effects of the components on the features over rows.

        The effect of a component on a feature is the derivative of the decoded row,
        times the standard deviation of the component. Derivatives are estimated by
        central differences, which any decoder allows, one component after another.

        Parameters
        ----------
        Z : Tensor of shape (n_samples, n_components)
            Codes.
        weight : Tensor of shape (n_samples,)
            Weights of the rows.
        deviation : Tensor of shape (n_components,)
            Standard deviations, 0 for constant components.

        Returns
        -------
        Tensor of shape (n_components, n_features)
            In squared units of the data.
        """
        codes = Z / self.code_factor
        steps = torch.diag(EFFECT_STEP * deviation / self.code_factor)
        sums = []
        for step in steps:
            high, low = (self.output(self.decoder(codes + s)) for s in (step, -step))
            sums.append(weight @ (high - low).square())
        return torch.stack(sums) * (self.scaler.factor / (2 * EFFECT_STEP)).square()

    def quantize(self, X: Tensor) -> Tensor:
        """Compute codebook indices, of shape (n_samples, n_groups)."""
        *_, H = self._encode(X)
        return self.rows_first(self.bottleneck.quantize(H))

    def dequantize(self, codes: Tensor) -> Tensor:
        """Compute rows, of shape (n_samples, n_features), from codebook indices."""
        codes = self._members_first(codes.long())
        return self.decode(self.rows_first(self.bottleneck.look_up(codes)))

    def propagate(self, X: Any) -> Propagation:
        """Run a forward pass without noise."""
        target, observed, H = self._encode(X)
        Z = self._function("bottleneck")(H)
        Z = self._refined(Z, target, self.max_refinements)
        is_dense = isinstance(target, Tensor)
        raw = self._function("decoder")(Z) if is_dense else self._decoded(Z, target)
        return Propagation(target, observed, target, H, raw, None)

    def propagate_in_training(
        self,
        batch: Batch,
        done: Tensor,
        corruption: nn.Module | None,
        width: int | None = None,
    ) -> Propagation:
        """Run a forward pass with a corrupted input and a noisy code.

        In eval mode, for held-out rows, codes are refined as well, in at most
        `max_validation_refinements` steps.

        Parameters
        ----------
        batch : Batch
            Scaled rows, the mask of their observed entries, and their weights.
        done : Tensor of shape ()
            Share of the training that is completed, in [0, 1].
        corruption : torch.nn.Module or None
            Corrupts observed entries in the scaled space.
        width : int, default=None
            Number of the first components to use in eval mode; None means all.

        Returns
        -------
        Propagation
        """
        target, observed = self._densified(batch.target, batch.observed)
        weight = batch.weight
        if observed is not None:
            target = self.within_range(target)
        target = self._in_memory_order(target)
        encoder_input = self._known(target)
        if corruption is not None:
            encoder_input = self._corrupted(corruption, encoder_input, observed)
        H = self._run_encoder(encoder_input)
        Z, term = self.bottleneck.training_code(H, weight, done)
        if self.prefixes is not None and self.training:
            Z, kept = self.prefixes(Z)
            raw = self._split(self._decoded(Z, target), len(kept))
            term = self.bottleneck.prefix_term(H, kept, done)
            return Propagation(target, observed, encoder_input, H, raw, term)
        n_steps = self.max_validation_refinements
        if self.prefixes is not None and width is not None:
            n_steps = self._validation_refinements_of(width)
            Z = Z[..., :width]
            kept = self.prefixes.first(Z.shape[-2], width, like=H)
            term = self.bottleneck.prefix_term(H, kept, done)
        if not self.training:
            Z = self._refined(Z, target, min(self.max_refinements, n_steps))
        raw = self._decoded(Z, target)
        return Propagation(target, observed, encoder_input, H, raw, term)

    def _corrupted(
        self, corruption: Any, target: Tensor, observed: Tensor | None
    ) -> Tensor:
        """Return the encoder's input in training; missing entries remain completed."""
        if not self.completes_hidden:
            corrupted = corruption(target)
            if observed is not None:
                corrupted = torch.where(observed, corrupted, target)
            return corrupted
        completion = self.scaler.completion
        assert completion is not None
        is_seen = ~corruption.hidden(target)
        if observed is not None:
            is_seen = is_seen & observed
        mean = self.scaler.scaled_mean.to(target.dtype)
        X = torch.where(is_seen, target, mean)  # of rows without a seen entry
        return self.within_range(completion.expectation(X, is_seen))

    def _decoded(self, Z: Tensor, target: Any) -> Any:
        """Decode codes; for sparse rows without the product of the last layer."""
        if not isinstance(target, SparseRows):
            return self.decoder(Z)
        decoder = linear_end(self.decoder)
        assert decoder is not None  # see `compares_sparse`
        return decoder(Z)

    def _split(self, raw: Any, n_parts: int) -> Any:
        """Divide outputs for the same rows in turn; the parts are the first axis."""
        if isinstance(raw, Tensor):
            return raw.unflatten(-2, (n_parts, -1)).movedim(-3, 0)
        parts = raw.F.unflatten(0, (n_parts, -1)).unbind()
        return [raw._replace(F=part) for part in parts]

    # Ordered components

    def _validation_refinements_of(self, width: int) -> int:
        """Return `max_validation_refinements` of a width."""
        return (
            max_validation_refinements(width) if self.max_validation_refinements else 0
        )

    def of_width(self, width: int) -> Autoencoder:
        """Return a module of the first components, with the weights of this one.

        `max_refinements` is the same for each width: if only codes of few components
        were refined, the explained variance would fall behind these.

        Parameters
        ----------
        width : int
            Number of components, in [1, n_components].
        """
        assert self.prefixes is not None
        module = copy.copy(self)
        module._modules, module._buffers = dict(self._modules), dict(self._buffers)
        module.functions = None  # those of the original
        module.max_validation_refinements = self._validation_refinements_of(width)
        if width < self.n_components:
            first = FirstComponents(self.n_components, width)
            module.encoder = nn.Sequential(self.encoder, first).eval()
            module.prefixes = self.prefixes.narrowed(width).eval()
            module.code_factor = self.code_factor[:width]
            module.n_components = width
        return module

    def losses(self, propagation: Propagation) -> Tensor | None:
        """Return the loss of each entry, of shape (n_samples, n_features).

        None for sparse rows, of which only the mean over a row is computed.
        """
        if isinstance(propagation.target, SparseRows):
            return None
        target, raw = propagation.target, propagation.raw
        return self.loss.elementwise_from_raw(target.expand_as(raw), raw, self.output)

    def mean_training_loss(
        self, losses: Tensor | None, propagation: Propagation
    ) -> Tensor:
        """Compute what training minimises, a mean over observed entries, (n_samples,).

        This is the loss, or with `noise`, the negative log-likelihood in nats.
        """
        if losses is None:
            target, output = propagation.target, propagation.raw
            if isinstance(output, list):
                parts = [propagation._replace(raw=part) for part in output]
                return torch.stack([self.mean_training_loss(None, p) for p in parts])
            if self.loss.is_squared_distance and output.suits_products:
                total = squared_distances(output, target)
            else:
                total = summed_losses(self.block_losses, output, target)
            return total / target.n_observed
        if self.noise is not None:
            losses = self.noise.negative_log_likelihood(losses)
        return observed_mean(losses, self.observed_features(propagation.observed))

    def observed_features(self, observed: Tensor | None) -> Tensor | None:
        """Return which features are observed, of which losses have a column each.

        Parameters
        ----------
        observed : Tensor of bool of shape (n_samples, n_columns) or None
            See `Propagation`. Categorical features have several columns, which are
            observed or missing together.
        """
        if observed is None or self.loss.layout is None:
            return observed
        return observed[..., self.output.first]  # type: ignore[index]

    @property
    def n_features(self) -> int:
        """Number of features of a row, of which losses have a column each."""
        layout = self.loss.layout
        return len(self.scaler.mean) if layout is None else layout.n_features

    def per_feature(self, term: Tensor, propagation: Propagation) -> Tensor:
        """Divide each row's term by its number of observed entries, as in its loss."""
        if isinstance(propagation.target, SparseRows):
            return term / propagation.target.n_observed
        observed = self.observed_features(propagation.observed)
        if observed is None:
            return term / self.n_features
        return term / count_observed(observed).squeeze(-1)

    def block_losses(self, block: FeatureBlock) -> Tensor:
        """Return the losses of the entries of some features."""
        return self.loss.elementwise(block.target.expand_as(block.raw), block.raw)

    def _encode(self, X: Any) -> tuple[Any, Tensor | None, Tensor]:
        """Return target, observed and H, as in `Propagation`."""
        target, observed = self._function("scaler")(X)
        target = self._in_memory_order(self.within_range(target))
        if not isinstance(target, Tensor):
            return target, observed, self._run_encoder(target)
        known = self._known(target)
        if self.visible is None:
            return target, observed, self._function("encoder")(known)
        encode = self._kept("members", lambda: visible_function(self.encoder))
        return target, observed, encode(known, self.visible, self._hidden)

    def _known(self, target: Any) -> Any:
        """Replace categories that no training row has by the mean, as missing ones."""
        if self.loss.layout is None:
            return target
        # The columns of other categories are 0 and 1.
        is_unknown = self.output.is_one_hot & (target < 0)
        return torch.where(is_unknown, self.scaler.scaled_mean, target)

    def within_range(self, scaled: Tensor) -> Tensor:
        """Replace values beyond the range of the loss by the nearest one in it."""
        if self.loss.bounds is None:
            return scaled
        bounded = torch.from_numpy(self.loss.bounded_columns(scaled.shape[-1]))
        clipped = scaled.clamp(*self.loss.bounds)
        return torch.where(bounded.to(scaled.device), clipped, scaled)

    def incomplete_rows(self, observed: Tensor) -> tuple[Tensor, ...]:
        """Return the positions of rows with missing and observed entries, in blocks."""
        is_incomplete = ~observed.all(dim=1) & observed.any(dim=1)
        return in_blocks(is_incomplete, 2 * N_DIRECTIONS * self.values_per_row)

    def may_have_excess(self, target: Tensor) -> bool:
        """Whether rows of this target may have values beyond the possible range."""
        return self.loss.bounds is not None or bool(target.abs().max() >= LIMIT)

    def _refined(self, Z: Tensor, target: Any, max_iter: int) -> Tensor:
        """Return codes whose reconstructions are closer to the target.

        Rows with missing entries are refined towards their completion: as many observed
        entries as components, or fewer, could be fitted by codes of any size.

        The codes and the rows of several networks have a first axis of the same length.
        """
        if not max_iter:
            return Z
        if isinstance(target, SparseRows):
            return self._refined_sparse(Z, target, max_iter)
        shape = Z.shape
        decode, output = self._function("decoder"), self._function("output")

        def generate(Z: Tensor) -> Tensor:
            codes = Z.reshape(shape) if len(shape) > 2 else Z
            return output(decode(codes)).flatten(0, -2)

        refined = refine(
            generate,
            Z.flatten(0, -2),
            target.flatten(0, -2),
            max_iter,
            linearize=self._linearizer(shape),
            all_at_once=len(shape) > 2,
        )
        return refined.reshape(shape)

    def _linearizer(self, shape: Sequence[int] = ()) -> Linearizer | None:
        """Return the argument `linearize` of `refine` for codes of this shape.

        None if the decoder has layers whose derivatives are not known.
        """
        parts = self.decoder, self.output
        function = self._kept("tangents", lambda: with_tangents(*parts))
        if function is None:
            return None

        def linearize(Z: Tensor) -> tuple[Tensor, Tensor]:
            k = Z.shape[-1]
            codes = Z.reshape(shape) if len(shape) > 2 else Z
            identity = torch.eye(k, dtype=Z.dtype, device=Z.device)
            rows, J = function(codes, identity.reshape(k, *[1] * (codes.ndim - 1), k))
            return rows.flatten(0, -2), J.expand(k, *rows.shape).flatten(1, -2)

        return linearize

    def _refined_sparse(self, Z: Tensor, target: SparseRows, max_iter: int) -> Tensor:
        """Refine codes in the space of the inputs of the last layer."""
        decoder = linear_end(self.decoder)
        assert decoder is not None  # see `compares_sparse`
        _, weight, bias = decoder(Z[:1])
        projection = Projection.of(weight, bias, target)

        def generate(Z: Tensor) -> Tensor:
            return projection.generate(decoder(Z).F)

        tangents = linear_end_tangents(self.decoder)

        def linearize(Z: Tensor) -> tuple[Tensor, Tensor]:
            assert tangents is not None
            identity = torch.eye(Z.shape[1], dtype=Z.dtype)
            F, J = tangents(Z, identity[:, None])
            return projection.generate(F), projection.generate(J)

        linearizer = None if tangents is None else linearize
        Z = Z.clone()
        n_values = 1 + self.n_components  # a value and its derivatives
        every = torch.ones(len(Z), dtype=torch.bool)
        for part in in_blocks(every, self.widest_inner_layer * n_values):
            projected = projection.target[part].to(Z.dtype)
            Z[part] = refine(
                generate, Z[part], projected, max_iter, linearize=linearizer
            )
        return Z

    def encoder_input(self, X: Tensor) -> Tensor:
        """Return the input of the encoder for rows in the units of the data."""
        return self.visible_part(self._known(self.scaler(X)[0]))

    def _function(self, part: str) -> Callable[[Tensor], Tensor]:
        """Return a function that computes the output of a part, see `as_function`."""
        return self._kept(part, lambda: as_function(getattr(self, part)))

    def _kept(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what a function makes; where `functions` is not None, it is kept."""
        if self.functions is None:
            return make()
        if key not in self.functions:
            self.functions[key] = make()
        return self.functions[key]

    # Members

    def _run_encoder(self, X: Any) -> Tensor:
        """Return the encoder's output for scaled rows, with the members first."""
        if self.visible is None:
            return self.encoder(X)
        if isinstance(X, SparseRows):
            return self.encoder(self.visible_part(X))
        return encode_visible(self.encoder, X, self.visible, self._hidden)

    @property
    def _hidden(self) -> Tensor | None:
        """What a member receives instead of hidden features; None means zeros."""
        return None if self.has_zero_mean else self.scaler.scaled_mean

    def _in_memory_order(self, X: Any) -> Any:
        """Return scaled rows in the memory order of the reconstructions of members.

        Elementwise operations of tensors of different orders are slow.
        """
        if self.visible is None or isinstance(X, SparseRows):
            return X
        return X.mT.contiguous().mT

    def visible_part(self, X: Any) -> Any:
        """Replace the features hidden from each member by their mean.

        Scaled rows of shape (n_samples, n_features) become (n_members, n_samples,
        n_features); without members they are returned unchanged.
        """
        if self.visible is None:
            return X
        if isinstance(X, SparseRows):
            return X.visible_to(self.visible, self.scaler.scaled_mean)
        return torch.where(self.visible, X, self.scaler.scaled_mean)

    def mean_over_members(self, values: Tensor) -> Tensor:
        """Average over the members."""
        return values if self.visible is None else values.mean(dim=0)

    def rows_first(self, values: Tensor) -> Tensor:
        """Move the axis of the members, if there is one, behind that of the rows."""
        return values if self.visible is None else values.movedim(0, 1)

    def _members_first(self, values: Tensor) -> Tensor:
        return values if self.visible is None else values.movedim(1, 0)


@contextmanager
def without_refinement(module: Autoencoder) -> Iterator[None]:
    """Context in which a module does not refine codes."""
    n_steps = module.max_refinements, module.max_validation_refinements
    module.max_refinements = module.max_validation_refinements = 0
    try:
        yield
    finally:
        module.max_refinements, module.max_validation_refinements = n_steps


class Scaler(nn.Module):
    """Affine map of the data, x' = (x - shift) / factor, and its inverse.

    The shift is subtracted with the precision of float64, before the cast to the
    network's type, so that a large offset costs no precision. Missing entries are
    replaced by their expectation given the observed entries of the row, if there is a
    `completion`, and by the mean otherwise. Scaled values are at most `LIMIT`.

    Parameters
    ----------
    mean, shift, factor : ndarray of shape (n_features,)
        Parameters of each feature, in the units of the data.
    completion : Completion, default=None
        Distribution of the rows in the scaled space.
    """

    mean: Tensor
    shift: Tensor
    factor: Tensor
    unit: Tensor
    completion: Completion | None

    def __init__(
        self,
        mean: np.ndarray,
        shift: np.ndarray,
        factor: np.ndarray,
        completion: Completion | None = None,
    ):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float64)))
        self.register_buffer("shift", torch.from_numpy(shift.astype(np.float64)))
        self.register_buffer("factor", torch.from_numpy(factor.astype(np.float64)))
        # Has the type of the network's weights, also after a cast.
        self.register_buffer("unit", torch.ones(()))
        self.register_module("completion", completion)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._modules.setdefault("completion", None)  # added after version 0.1

    def forward(self, X: Any, *, overwrite: bool = False) -> tuple[Any, Tensor | None]:
        """Scale rows and replace their missing entries.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
            Rows in the units of the data; NaN marks a missing entry.
        overwrite : bool, default=False
            Whether the memory of `X` may be reused.

        Returns
        -------
        scaled : Tensor of shape (n_samples, n_features)
            Scaled rows.
        observed : Tensor of bool of shape (n_samples, n_features) or None
            False where an entry is missing; None if none is, and for `SparseRows`,
            which remain sparse.
        """
        if isinstance(X, SparseRows):
            return X.scaled(self.shift, self.factor, self.scaled_mean), None
        scaled = self.scale(X, out=X if overwrite else None).clamp_(-LIMIT, LIMIT)
        if not scaled.sum().isnan():  # one pass, enough for most tables
            return scaled, None
        observed = ~scaled.isnan()
        scaled = torch.where(observed, scaled, self.scaled_mean)
        if self.completion is not None:
            scaled = self.completion(scaled, observed).clamp_(-LIMIT, LIMIT)
        return scaled, observed

    @property
    def scaled_mean(self) -> Tensor:
        """The mean in the scaled space, of shape (n_features,)."""
        return ((self.mean - self.shift) / self.factor).to(self.unit)

    def scale(self, X: Tensor, out: Tensor | None = None) -> Tensor:
        """Scale rows; missing entries remain NaN, and values may overflow.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
            Rows in the units of the data.
        out : Tensor, default=None
            Memory for the result, if it has its type.
        """
        if X.dtype == self.unit.dtype == torch.float32 and self._fits_float32:
            # The sum of two float32 numbers represents the float64 shift.
            shift = self.shift.float()
            rest = (self.shift - shift).float()
            return torch.sub(X, shift, out=out).sub_(rest).div_(self.factor.float())
        if X.dtype == self.shift.dtype:
            return torch.sub(X, self.shift, out=out).div_(self.factor).to(self.unit)
        return ((X - self.shift) / self.factor).to(self.unit)

    @property
    def _fits_float32(self) -> bool:
        """Whether shift and factor are in the range of float32."""
        info = torch.finfo(torch.float32)
        is_small = (self.shift.abs() <= info.max) & (self.factor <= info.max)
        return bool((is_small & (self.factor >= info.tiny)).all())

    def unscale(self, X: Tensor) -> Tensor:
        """Map from the scaled space to the units of the data."""
        return _to_finite(X * self.factor + self.shift, X.dtype)


def in_blocks(is_selected: Tensor, n_values: int) -> tuple[Tensor, ...]:
    """Return the positions of rows, in blocks that may be dense.

    Parameters
    ----------
    is_selected : Tensor of bool of shape (n_rows,)
    n_values : int
        Number of values held at a time for one row.
    """
    positions = is_selected.nonzero()[:, 0]
    if not len(positions):
        return ()
    return positions.split(max(1, BLOCK_ENTRIES // n_values))


def _to_finite(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to another type; values beyond its range become its largest number."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)
