"""The PyTorch module: scaler, encoder, bottleneck, decoder and output activation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skae._layers import StackedLinear, forward_hooks
from skae._noise import Noise
from skae._refine import refine
from skae._rows import Batch
from skae.bottlenecks import Squeeze
from skae.losses import Loss, count_observed, observed_mean, observed_share

# Most refinement steps for held-out rows during training. Three steps identify the
# best epoch as well as ten, and training takes a seventh less time.
MAX_VALIDATION_REFINEMENTS = 3

# Largest absolute value in the scaled space that the network receives. Its square is
# finite in float32, in which values beyond 1.8e19 would overflow.
LIMIT = 1e16

# Error of a value beyond the range of the loss, or beyond LIMIT, per unit of its
# distance to the range. The largest number of features, or a mean of logarithms, cannot
# hide such an error, and one of the size of a rounding error has no effect.
EXCESS_WEIGHT = 1e6

# Methods in which an error of float32 could be as large as the result: a residual is
# the difference of two nearly equal numbers.
EXACT_METHODS = frozenset({"contributions", "residuals", "row_error"})


class Propagation(NamedTuple):
    """Result of one forward pass, in the scaled space.

    With several members, `encoder_input`, `H`, `raw` and `term` have a first axis of
    length n_members.

    Attributes
    ----------
    target : Tensor of shape (n_samples, n_features)
        Scaled rows, missing entries replaced by the mean.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False where an entry is missing; None if none is.
    encoder_input : Tensor of shape (n_samples, n_features)
        The target, or a corrupted version of it.
    H : Tensor of shape (n_samples, encoder_width)
        Encoder output.
    raw : Tensor of shape (n_samples, n_features)
        Decoder output before the output activation.
    term : Tensor of shape (n_samples,) or None
        Term that the bottleneck adds to the objective; None if there is none.
    """

    target: Tensor
    observed: Tensor | None
    encoder_input: Tensor
    H: Tensor
    raw: Tensor
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

    Attributes
    ----------
    residual_scale : Tensor or None
        Mean absolute residual of each feature in the scaled space, by which the score
        divides residuals, of shape (n_features,) or (n_members, 1, n_features); None
        if the score is the loss.
    max_refinements : int
        Number of optimisation steps by which a code is refined after encoding,
        outside training.
    max_validation_refinements : int
        Largest number of such steps for held-out rows during training.
    widest_layer : int
        Largest number of values that a layer outputs for one row.
    work : int
        Number of multiplications for one row, in encoder and decoder.
    """

    bottleneck: Any
    code_factor: Tensor
    visible: Tensor | None
    residual_scale: Tensor | None

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
        self.noise = noise
        self.max_refinements = 0
        self.max_validation_refinements = MAX_VALIDATION_REFINEMENTS
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
        if method in ("encode", "quantize", "forward"):
            return self.max_refinements > 0 or not self.bottleneck.is_continuous
        return method in EXACT_METHODS

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

    def forward(self, X: Tensor) -> Tensor:
        """Reconstruct rows of shape (n_samples, n_features)."""
        return self.scaler.unscale(self._mean(self.output(self.propagate(X).raw)))

    def encode(self, X: Tensor) -> Tensor:
        """Compute codes, of shape (n_samples, n_components).

        With several members, codes here and in the methods below have the shape
        (n_samples, n_members, n_components).
        """
        target, observed, _, H = self._encode(X)
        Z = self.bottleneck(H)
        Z = self._refined(Z, target, observed, self.max_refinements)
        return self._rows_first(_to_finite(Z * self.code_factor, Z.dtype))

    def decode(self, Z: Tensor) -> Tensor:
        """Compute rows, of shape (n_samples, n_features), from codes."""
        Z = self._members_first(Z / self.code_factor.to(Z.dtype))
        return self.scaler.unscale(self._mean(self.output(self.decoder(Z))))

    def quantize(self, X: Tensor) -> Tensor:
        """Compute codebook indices, of shape (n_samples, n_groups)."""
        *_, H = self._encode(X)
        return self._rows_first(self.bottleneck.quantize(H))

    def dequantize(self, codes: Tensor) -> Tensor:
        """Compute rows, of shape (n_samples, n_features), from codebook indices."""
        codes = self._members_first(codes.long())
        return self.decode(self._rows_first(self.bottleneck.look_up(codes)))

    def propagate(self, X: Tensor) -> Propagation:
        """Run a forward pass without noise."""
        target, observed, encoder_input, H = self._encode(X)
        Z = self.bottleneck(H)
        Z = self._refined(Z, target, observed, self.max_refinements)
        return Propagation(target, observed, encoder_input, H, self.decoder(Z), None)

    def propagate_in_training(
        self, batch: Batch, done: Tensor, corruption: nn.Module | None
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

        Returns
        -------
        Propagation
        """
        target, observed, weight = batch
        encoder_input = target
        if corruption is not None:
            encoder_input = corruption(target)
            if observed is not None:  # missing entries remain the mean
                encoder_input = torch.where(observed, encoder_input, target)
        encoder_input = self._visible_part(encoder_input)
        H = self.encoder(encoder_input)
        Z, term = self.bottleneck.training_code(H, weight, done)
        if not self.training:
            max_iter = min(self.max_refinements, self.max_validation_refinements)
            Z = self._refined(Z, target, observed, max_iter)
        return Propagation(target, observed, encoder_input, H, self.decoder(Z), term)

    def contributions(self, X: Tensor) -> Tensor:
        """Compute each entry's share of its row's error, (n_samples, n_features)."""
        propagation = self.propagate(X)
        errors = self._errors(propagation) + EXCESS_WEIGHT * self.excess(X)
        return self._mean(observed_share(errors, propagation.observed))

    def row_error(self, X: Tensor) -> Tensor:
        """Compute each row's mean error over its observed entries, (n_samples,).

        Some bottlenecks add a term of their own. It is in nats, and multiplied by the
        scale of the noise, as the log-likelihood is.
        """
        propagation = self.propagate(X)
        errors = self._errors(propagation)
        term = self.bottleneck.score_term(propagation.H)
        if term is not None and self.noise is not None:
            errors = self.noise.energy(errors)
            term = self.noise.scale.squeeze(-1) * term
        errors = errors + EXCESS_WEIGHT * self.excess(X)
        error = observed_mean(errors, propagation.observed)
        if term is not None:
            error = error + self.per_feature(term, propagation)
        return self._mean(error)

    def excess(self, X: Tensor) -> Tensor:
        """Compute the distance of each entry to the range of values that are possible.

        Of shape (n_samples, n_features), in the scaled space and at most `LIMIT`. The
        range is that of the loss or, for columns without one, up to `LIMIT`.
        """
        scaled = self.scaler.scale(X)
        possible = self._within_range(scaled.clamp(-LIMIT, LIMIT))
        excess = (scaled - possible).abs().clamp(max=LIMIT)
        return torch.where(excess > 0, excess, 0)  # 0 at missing entries

    def residuals(self, X: Tensor) -> Tensor:
        """Compute absolute residuals in the scaled space, NaN at missing entries.

        Of shape (n_samples, n_features), or (n_samples, n_members, n_features).
        """
        propagation = self.propagate(X)
        residuals = self._absolute_residuals(propagation)
        if propagation.observed is not None:
            residuals = torch.where(propagation.observed, residuals, torch.nan)
        return self._rows_first(residuals)

    def losses(self, propagation: Propagation) -> Tensor:
        """Return the loss of each entry, of shape (n_samples, n_features)."""
        target, raw = propagation.target, propagation.raw
        return self.loss.elementwise_from_raw(target.expand_as(raw), raw, self.output)

    def mean_training_loss(self, losses: Tensor, propagation: Propagation) -> Tensor:
        """Compute what training minimises, a mean over observed entries, (n_samples,).

        This is the loss, or with `noise`, the negative log-likelihood in nats.
        """
        if self.noise is not None:
            losses = self.noise.negative_log_likelihood(losses)
        return observed_mean(losses, propagation.observed)

    def per_feature(self, term: Tensor, propagation: Propagation) -> Tensor:
        """Divide each row's term by its number of observed entries, as in its loss."""
        if propagation.observed is None:
            return term / propagation.target.shape[1]
        return term / count_observed(propagation.observed).squeeze(1)

    def _errors(self, propagation: Propagation) -> Tensor:
        """Return log(1 + |x - x_hat| / residual_scale) of each entry, or its loss."""
        if self.residual_scale is None:
            return self.losses(propagation)
        return (self._absolute_residuals(propagation) / self.residual_scale).log1p()

    def _absolute_residuals(self, propagation: Propagation) -> Tensor:
        return (propagation.target - self.output(propagation.raw)).abs()

    def _encode(self, X: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return target, observed, encoder_input and H, as in `Propagation`."""
        target, observed = self.scaler(X)
        target = self._within_range(target)
        encoder_input = self._visible_part(target)
        return target, observed, encoder_input, self.encoder(encoder_input)

    def _within_range(self, scaled: Tensor) -> Tensor:
        """Replace values beyond the range of the loss by the nearest one in it."""
        if self.loss.bounds is None:
            return scaled
        bounded = torch.from_numpy(self.loss.bounded_columns(scaled.shape[-1]))
        clipped = scaled.clamp(*self.loss.bounds)
        return torch.where(bounded.to(scaled.device), clipped, scaled)

    def _refined(
        self, Z: Tensor, target: Tensor, observed: Tensor | None, max_iter: int
    ) -> Tensor:
        """Return codes whose reconstructions are closer to the target."""
        if not max_iter:
            return Z

        def generate(Z: Tensor) -> Tensor:
            return self.output(self.decoder(Z))

        return refine(generate, Z, target, observed, max_iter)

    def encoder_input(self, X: Tensor) -> Tensor:
        """Return the input of the encoder for rows in the units of the data."""
        return self._visible_part(self.scaler(X)[0])

    # Members

    def _visible_part(self, X: Tensor) -> Tensor:
        """Replace the features hidden from each member by their mean.

        Scaled rows of shape (n_samples, n_features) become (n_members, n_samples,
        n_features); without members they are returned unchanged.
        """
        if self.visible is None:
            return X
        return torch.where(self.visible, X, self.scaler.scaled_mean)

    def _mean(self, values: Tensor) -> Tensor:
        """Average over the members."""
        return values if self.visible is None else values.mean(dim=0)

    def _rows_first(self, values: Tensor) -> Tensor:
        return values if self.visible is None else values.movedim(0, 1)

    def _members_first(self, values: Tensor) -> Tensor:
        return values if self.visible is None else values.movedim(1, 0)


class Scaler(nn.Module):
    """Affine map of the data, x' = (x - shift) / factor, and its inverse.

    The shift is subtracted with the precision of float64, before the cast to the
    network's type, so that a large offset costs no precision. Missing entries are
    replaced by the mean, and scaled values are at most `LIMIT`.

    Parameters
    ----------
    mean, shift, factor : ndarray of shape (n_features,)
        Parameters of each feature, in the units of the data.
    """

    mean: Tensor
    shift: Tensor
    factor: Tensor
    unit: Tensor

    def __init__(self, mean: np.ndarray, shift: np.ndarray, factor: np.ndarray):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float64)))
        self.register_buffer("shift", torch.from_numpy(shift.astype(np.float64)))
        self.register_buffer("factor", torch.from_numpy(factor.astype(np.float64)))
        # Has the type of the network's weights, also after a cast.
        self.register_buffer("unit", torch.ones(()))

    def forward(
        self, X: Tensor, *, overwrite: bool = False
    ) -> tuple[Tensor, Tensor | None]:
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
            False where an entry is missing; None if none is.
        """
        scaled = self.scale(X, out=X if overwrite else None).clamp_(-LIMIT, LIMIT)
        if not scaled.sum().isnan():  # one pass, enough for most tables
            return scaled, None
        observed = ~scaled.isnan()
        return torch.where(observed, scaled, self.scaled_mean), observed

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


def _to_finite(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to another type; values beyond its range become its largest number."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)
