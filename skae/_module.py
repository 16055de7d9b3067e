"""The torch module: scale, encode, squeeze, decode, unscale."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skae._batches import Batch
from skae._layers import StackedLinear, forward_hooks
from skae._refine import refine
from skae.bottlenecks import Squeeze
from skae.losses import Loss, count_observed, observed_mean, observed_share

# Steps by which held-out codes are refined: three tell good epochs from bad ones as
# well as ten, and training takes a seventh less time.
MAX_JUDGED = 3


class Propagation(NamedTuple):
    """What one pass through the network gives, in the scaled space.

    With several members, `encoder_input`, `H`, `raw` and `term` have a first axis of
    length n_members.

    Attributes
    ----------
    target : Tensor of shape (n_samples, n_features)
        Scaled rows, missing entries filled with the mean.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        True where an entry is not missing; None if none is.
    encoder_input : Tensor of shape (n_samples, n_features)
        What the encoder saw: the target, or a corrupted version of it.
    H : Tensor of shape (n_samples, encoder_width)
        What it said.
    raw : Tensor of shape (n_samples, n_features)
        The decoder's values before the output activation.
    term : Tensor of shape (n_samples,) or None
        The bottleneck's term; None if it has none.
    """

    target: Tensor
    observed: Tensor | None
    encoder_input: Tensor
    H: Tensor
    raw: Tensor
    term: Tensor | None


class Autoencoder(nn.Module):
    """A network that reproduces its input through a narrow code.

    Rows come and go in the units of the data; between scaler and unscaling the
    network sees the scaled space, in which its loss is measured. Encoder,
    bottleneck and decoder may be stacks of several members, each of which may be
    blind to some features but has to reproduce them all; what comes out is then
    the members' mean.

    Parameters
    ----------
    scaler : Scaler
    encoder : torch.nn.Module
    bottleneck : Squeeze
    decoder, output : torch.nn.Module
        ``output`` is the activation behind the decoder.
    loss : Loss
        Compares entries in the scaled space.
    n_components : int
        Width of the code.
    code_factor : ndarray of shape (n_components,), default=None
        Multiplies the codes on their way out, to bring them to the units that a
        user expects. The encoder and the decoder do not see it.
    draws_globally : bool, default=False
        Whether a part may draw from PyTorch's global random generator.
    visible : Tensor of bool of shape (n_members, 1, n_features), default=None
        Features that the encoder of each member sees; the others are read as the
        mean. None means one network that sees all.

    Attributes
    ----------
    residual_scale : Tensor or None
        Mean absolute residual of each feature in the scaled space, by which the score
        divides residuals, of shape (n_features,) or (n_members, 1, n_features); None
        if the score is the loss.
    max_refinements : int
        Steps by which a code is moved nearer to its row, once the encoder has spoken,
        wherever nothing is trained.
    widest_layer : int
        Most values that a layer holds for one row.
    work : int
        Multiplications of one row's way through encoder and decoder.
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
        self.max_refinements = 0
        self.widest_layer, self.work = self._measure()

    def _measure(self) -> tuple[int, int]:
        """Most values that a layer holds for one row, and its multiplications."""
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

    @property
    def values_per_row(self) -> int:
        """Most values held at a time for one row that is not trained on."""
        if not self.max_refinements:
            return self.widest_layer
        return self.widest_layer * (1 + self.n_components)  # with its Jacobian

    def forward(self, X: Tensor) -> Tensor:
        """Reconstruct rows of shape (n_samples, n_features), in their units."""
        return self.scaler.unscale(self._mean(self.output(self.propagate(X).raw)))

    def encode(self, X: Tensor) -> Tensor:
        """Codes, of shape (n_samples, n_components).

        With several members, (n_samples, n_members, n_components), here and below.
        """
        target, observed, _, H = self._encode(X)
        Z = self.bottleneck(H)
        Z = self._refined(Z, target, observed, self.max_refinements)
        return self._rows_first(Z * self.code_factor.to(Z.dtype))

    def decode(self, Z: Tensor) -> Tensor:
        """Rows, of shape (n_samples, n_features), from their codes."""
        Z = self._members_first(Z / self.code_factor.to(Z.dtype))
        return self.scaler.unscale(self._mean(self.output(self.decoder(Z))))

    def quantize(self, X: Tensor) -> Tensor:
        """Positions in the codebooks, of shape (n_samples, n_groups)."""
        *_, H = self._encode(X)
        return self._rows_first(self.bottleneck.quantize(H))

    def dequantize(self, codes: Tensor) -> Tensor:
        """Rows, of shape (n_samples, n_features), from positions in the codebooks."""
        codes = self._members_first(codes.long())
        return self.decode(self._rows_first(self.bottleneck.look_up(codes)))

    def propagate(self, X: Tensor) -> Propagation:
        """A pass without any noise."""
        target, observed, encoder_input, H = self._encode(X)
        Z = self.bottleneck(H)
        Z = self._refined(Z, target, observed, self.max_refinements)
        return Propagation(target, observed, encoder_input, H, self.decoder(Z), None)

    def propagate_in_training(
        self, batch: Batch, done: Tensor, corruption: nn.Module | None
    ) -> Propagation:
        """A pass as training sees it: with a corrupted input and a noisy code.

        In eval mode, for held-out rows, codes are refined, too, in few steps.

        Parameters
        ----------
        batch : Batch
        done : Tensor of shape ()
            Share of the training that is over.
        corruption : torch.nn.Module or None
            Corrupts observed entries in the scaled space.
        """
        target, observed, weight = batch
        encoder_input = target
        if corruption is not None:
            encoder_input = corruption(target)
            if observed is not None:  # a missing entry is always read as the mean
                encoder_input = torch.where(observed, encoder_input, target)
        encoder_input = self._visible_part(encoder_input)
        H = self.encoder(encoder_input)
        Z, term = self.bottleneck.training_code(H, weight, done)
        if not self.training:
            max_iter = min(self.max_refinements, MAX_JUDGED)
            Z = self._refined(Z, target, observed, max_iter)
        return Propagation(target, observed, encoder_input, H, self.decoder(Z), term)

    def contributions(self, X: Tensor) -> Tensor:
        """Each entry's share of its row's error, of shape (n_samples, n_features)."""
        propagation = self.propagate(X)
        return self._mean(
            observed_share(self._errors(propagation), propagation.observed)
        )

    def row_error(self, X: Tensor) -> Tensor:
        """Mean error of each row over its observed entries, of shape (n_samples,).

        A bottleneck may have the score count its own term beside it.
        """
        propagation = self.propagate(X)
        error = observed_mean(self._errors(propagation), propagation.observed)
        term = self.bottleneck.score_term(propagation.H)
        if term is not None:
            error = error + self.per_feature(term, propagation)
        return self._mean(error)

    def residuals(self, X: Tensor) -> Tensor:
        """Sizes of the residuals in the scaled space, NaN at missing entries.

        Of shape (n_samples, n_features), or (n_samples, n_members, n_features).
        """
        propagation = self.propagate(X)
        sizes = self._residual_sizes(propagation)
        if propagation.observed is not None:
            sizes = torch.where(propagation.observed, sizes, torch.nan)
        return self._rows_first(sizes)

    def mean_loss(self, propagation: Propagation) -> Tensor:
        """Each row's loss after a pass, of shape (n_samples,)."""
        return observed_mean(self._losses(propagation), propagation.observed)

    def _errors(self, propagation: Propagation) -> Tensor:
        """What the score counts of an entry: log(1 + |x - x_hat| / s), or its loss."""
        if self.residual_scale is None:
            return self._losses(propagation)
        return (self._residual_sizes(propagation) / self.residual_scale).log1p()

    def _losses(self, propagation: Propagation) -> Tensor:
        """Each entry's loss, of shape (n_samples, n_features)."""
        target, raw = propagation.target, propagation.raw
        return self.loss.elementwise_from_raw(target.expand_as(raw), raw, self.output)

    def _residual_sizes(self, propagation: Propagation) -> Tensor:
        return (propagation.target - self.output(propagation.raw)).abs()

    def _encode(self, X: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The first four of a `Propagation`: target, observed, encoder_input and H."""
        target, observed = self.scaler(X)
        encoder_input = self._visible_part(target)
        return target, observed, encoder_input, self.encoder(encoder_input)

    def _refined(
        self, Z: Tensor, target: Tensor, observed: Tensor | None, max_iter: int
    ) -> Tensor:
        """Codes moved nearer to their rows."""
        if not max_iter:
            return Z

        def generate(Z: Tensor) -> Tensor:
            return self.output(self.decoder(Z))

        return refine(generate, Z, target, observed, max_iter)

    # Members

    def _visible_part(self, X: Tensor) -> Tensor:
        """What each member sees of scaled rows: (n_members, n_samples, n_features)."""
        if self.visible is None:
            return X
        return torch.where(self.visible, X, self.scaler.scaled_mean)

    def _mean(self, values: Tensor) -> Tensor:
        """The members' mean."""
        return values if self.visible is None else values.mean(dim=0)

    def _rows_first(self, values: Tensor) -> Tensor:
        return values if self.visible is None else values.movedim(0, 1)

    def _members_first(self, values: Tensor) -> Tensor:
        return values if self.visible is None else values.movedim(1, 0)

    def per_feature(self, term: Tensor, propagation: Propagation) -> Tensor:
        """A row's term divided by its number of observed entries, as its loss is."""
        if propagation.observed is None:
            return term / propagation.target.shape[1]
        return term / count_observed(propagation.observed).squeeze(1)


class Scaler(nn.Module):
    """Affine map of the data, x' = (x - shift) / factor, and its inverse.

    It subtracts with the precision of float64, before the cast to the network's
    type, so that a large offset costs none. Missing entries become the mean.

    Parameters
    ----------
    mean, shift, factor : ndarray of shape (n_features,)
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
        # Follows the weights' type wherever they are cast.
        self.register_buffer("unit", torch.ones(()))

    def forward(
        self, X: Tensor, *, overwrite: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Scaled rows without missing entries, and which ones were observed.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
        overwrite : bool, default=False
            Whether the memory of X may be used.
        """
        scaled = self._scale(X, out=X if overwrite else None)
        if not scaled.sum().isnan():  # one pass, where most tables are complete
            return scaled, None
        observed = ~scaled.isnan()
        return torch.where(observed, scaled, self.scaled_mean), observed

    @property
    def scaled_mean(self) -> Tensor:
        """The mean in the scaled space, of shape (n_features,)."""
        return ((self.mean - self.shift) / self.factor).to(self.unit)

    def _scale(self, X: Tensor, out: Tensor | None) -> Tensor:
        if X.dtype == self.unit.dtype == torch.float32:
            # As two numbers of float32 the shift is as exact as in float64.
            shift = self.shift.float()
            rest = (self.shift - shift).float()
            return torch.sub(X, shift, out=out).sub_(rest).div_(self.factor.float())
        return torch.sub(X, self.shift, out=out).div_(self.factor).to(self.unit)

    def unscale(self, X: Tensor) -> Tensor:
        """Map from the scaled space back to the units of the data."""
        return (X * self.factor + self.shift).to(X.dtype)
