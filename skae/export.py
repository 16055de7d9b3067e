"""Write fitted estimators as ONNX files, which run without Python.

PyTorch traces the graph [1]_. It computes in float64, as an estimator does with rows of
float64; what onnxruntime has in float32 only is made of other operators.

References
----------
.. [1] https://onnx.ai
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import skae
from skae._base import BaseAutoencoder, isolated
from skae._files import replace
from skae._module import Autoencoder, Scaler
from skae._refine import Descent, begin_descent, descend, narrowest
from skae.outlier import AutoencoderOutlierDetector
from skae.transformer import AutoencoderTransformer

__all__ = ["export_onnx", "register_skl2onnx"]

# The methods behind each `output`, those of them that an estimator has.
OUTPUTS = {
    "codes": ("transform",),
    "reconstruction": ("reconstruct",),
    "scores": ("score_samples", "decision_function", "predict"),
}

# In later operator sets onnxruntime lacks kernels in float64, such as the softplus.
OPSET = 18


def export_onnx(
    estimator: BaseAutoencoder,
    path: str | os.PathLike,
    output: str = "codes",
    *,
    dtype: str = "float32",
) -> None:
    """Write what a fitted estimator computes to an ONNX file.

    The graph has one input, ``"X"``, of shape (n_samples, n_features) with any number
    of rows, where NaN marks a missing entry. Each output is named as the method that
    it equals. Scaling, the refinement of codes and a detector's threshold are part of
    the graph; the checks of X are not.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        Fitted.
    path : str or path-like
        The file to write; ``".onnx"`` suits as its ending.
    output : {"codes", "reconstruction", "scores"}, default="codes"
        What the graph gives: ``"codes"``, of a transformer, are `transform`;
        ``"reconstruction"`` is `reconstruct`; ``"scores"`` are `score_samples` and,
        of a detector, `decision_function` and `predict` as well.
    dtype : {"float32", "float64"}, default="float32"
        Type of X, and of codes and reconstructions; scores are float64 and labels
        int64. In between all is computed in float64, whatever the type.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed.
    TypeError
        If the estimator is no autoencoder of skae.
    NotFittedError
        If it is not fitted.
    ValueError
        If it does not have this output, or holds a module of your own that cannot
        be written in ONNX.

    See Also
    --------
    save : Keeps the estimator itself.

    Notes
    -----
    The metadata of the file hold the version of skae (``"skae"``), the estimator's
    class (``"estimator"``) and, if it knows them, the names of the features as a list
    in JSON (``"feature_names"``).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import onnxruntime
    >>> import skae
    >>> from sklearn.datasets import load_iris
    >>> X = load_iris().data.astype(np.float32)
    >>> detector = skae.AutoencoderOutlierDetector(max_epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "iris.onnx"
    ...     skae.export_onnx(detector, path, output="scores")
    ...     session = onnxruntime.InferenceSession(path)
    >>> (labels,) = session.run(["predict"], {"X": X})
    >>> bool((labels == detector.predict(X)).all())
    True
    """
    _check_installed()
    if not isinstance(estimator, BaseAutoencoder):
        raise TypeError(
            "estimator must be an AutoencoderTransformer or an "
            f"AutoencoderOutlierDetector, got {estimator!r}. A Pipeline goes through "
            "skl2onnx, see skae.export.register_skl2onnx."
        )
    check_is_fitted(estimator)
    methods = _methods(estimator, output)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
    model = graph_of(estimator, methods, dtype)
    replace(Path(path), model.SerializeToString())


def register_skl2onnx() -> None:
    """Make skl2onnx write pipelines that hold an autoencoder.

    A transformer becomes `transform`. A detector at the end of a pipeline has the
    outputs of an `IsolationForest`: ``"label"``, that is `predict`, and ``"scores"``,
    that is `decision_function`, both of shape (n_samples, 1).

    Raises
    ------
    ImportError
        If skl2onnx, onnx or onnxscript is not installed.

    See Also
    --------
    export_onnx : Writes an estimator alone, with all its outputs.

    Notes
    -----
    The steps before the autoencoder compute in the type of X that skl2onnx is given;
    for rows of float64, give it rows of float64.

    Examples
    --------
    >>> import skae.export
    >>> import skl2onnx
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X = load_iris().data
    >>> ae = skae.AutoencoderTransformer(1, max_epochs=5, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), ae).fit(X)
    >>> skae.export.register_skl2onnx()
    >>> model = skl2onnx.to_onnx(pipeline, X[:1])
    >>> model.graph.output[0].name
    'variable'
    """
    _check_installed("skl2onnx")
    from skl2onnx import update_registered_converter

    for kind in (AutoencoderTransformer, AutoencoderOutlierDetector):
        update_registered_converter(
            kind, f"Skae{kind.__name__}", _set_shapes, _add_to_pipeline
        )


def _set_shapes(operator: Any) -> None:
    """Tell skl2onnx the shapes and types of an autoencoder's outputs."""
    from skl2onnx.common.data_types import Int64TensorType, guess_tensor_type

    estimator = operator.raw_operator
    n_samples = operator.inputs[0].get_first_dimension()
    result = guess_tensor_type(operator.inputs[0].type)
    if isinstance(estimator, AutoencoderTransformer):
        result.shape = [n_samples, estimator.n_components_]
        operator.outputs[0].type = result
    else:
        result.shape = [n_samples, 1]
        operator.outputs[0].type = Int64TensorType([n_samples, 1])
        operator.outputs[1].type = result


def _add_to_pipeline(scope: Any, operator: Any, container: Any) -> None:
    """Put the graph of an autoencoder among the others of a pipeline."""
    from onnx import TensorProto, compose, helper, numpy_helper
    from skl2onnx.common.data_types import DoubleTensorType

    if container.target_opset < OPSET:
        raise ValueError(
            f"target_opset={container.target_opset} is too low for an autoencoder, "
            f"which needs {OPSET} or more."
        )
    estimator = operator.raw_operator
    is_double = isinstance(operator.inputs[0].type, DoubleTensorType)
    dtype, kind = (
        ("float64", TensorProto.DOUBLE) if is_double else ("float32", TensorProto.FLOAT)
    )
    is_transformer = isinstance(estimator, AutoencoderTransformer)
    methods = ["transform"] if is_transformer else ["predict", "decision_function"]
    prefix = scope.get_unique_operator_name("skae") + "_"
    graph = compose.add_prefix_graph(graph_of(estimator, methods, dtype).graph, prefix)

    def add(operation: str, given: list[str], made: str, **attributes: Any) -> None:
        node = helper.make_node(operation, given, [made], **attributes)
        container.nodes.append(node)

    add("Identity", [operator.inputs[0].full_name], f"{prefix}X")
    container.nodes.extend(graph.node)
    container.initializers.extend(graph.initializer)
    container.node_domain_version_pair_sets.add(("", OPSET))
    names = [output.full_name for output in operator.outputs]
    if is_transformer:
        add("Identity", [f"{prefix}transform"], names[0])
        return
    column = numpy_helper.from_array(np.array([-1, 1]), f"{prefix}column")
    container.initializers.append(column)
    add("Cast", [f"{prefix}decision_function"], f"{prefix}scores", to=kind)
    for given, made in zip((f"{prefix}predict", f"{prefix}scores"), names, strict=True):
        add("Reshape", [given, column.name], made)


def _check_installed(*others: str) -> None:
    for name in ("onnx", "onnxscript", *others):
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f'{name} is needed to write ONNX: pip install "skae[onnx]".'
            ) from error


def _methods(estimator: BaseAutoencoder, output: str) -> list[str]:
    """The methods behind an output."""
    allowed = {
        name: [method for method in methods if hasattr(estimator, method)]
        for name, methods in OUTPUTS.items()
    }
    if not allowed.get(output):
        names = [name for name, methods in allowed.items() if methods]
        raise ValueError(
            f"output must be one of {names} for {type(estimator).__name__}, got "
            f"{output!r}."
        )
    return allowed[output]


def graph_of(estimator: BaseAutoencoder, methods: Sequence[str], dtype: str) -> Any:
    """The ONNX model of some methods of a fitted estimator."""
    import onnx

    module = _Traced.of(estimator)
    whole = _Outputs(
        module, methods, getattr(estimator, "offset_", 0.0), getattr(torch, dtype)
    )
    # More rows than one, since PyTorch takes one row for a constant.
    rows = torch.zeros(3, estimator.n_features_in_, dtype=whole.dtype)
    with torch.no_grad(), isolated(module.draws_globally, 0):
        model = _traced(whole, (rows,), ["X"], methods)
        places = [node for node in model.graph.node if node.op_type == "Descent"]
        if places:
            step = _traced(_Step(module), module.example(rows.double())).graph
            for place in places:
                _repeat(model.graph, place, step, module.max_refinements)
    _compute_in_float32(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(
        model.graph,
        opset_imports=[opset],
        ir_version=model.ir_version,
        producer_name="skae",
        producer_version=skae.__version__,
    )
    onnx.helper.set_model_props(model, _metadata(estimator))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(estimator: BaseAutoencoder) -> dict[str, str]:
    metadata = {"skae": skae.__version__, "estimator": type(estimator).__name__}
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        metadata["feature_names"] = json.dumps(list(names))
    return metadata


def _compute_in_float32(graph: Any) -> None:
    """Put casts around the operators that have no kernel in float64."""
    from onnx import TensorProto, helper

    from skae._operators import INTEGER_INPUT, SINGLE

    def cast(given: str, made: str, kind: int) -> Any:
        return helper.make_node("Cast", [given], [made], to=kind)

    nodes = []
    for node in graph.node:
        if node.op_type not in SINGLE:
            nodes.append(node)
            continue
        after = []
        for i, name in enumerate(node.input):
            if name and i != INTEGER_INPUT:
                node.input[i] = f"{node.output[0]}_single_{i}"
                nodes.append(cast(name, node.input[i], TensorProto.FLOAT))
        for i, name in enumerate(node.output):
            if name:
                node.output[i] = f"{name}_single"
                after.append(cast(node.output[i], name, TensorProto.DOUBLE))
        nodes.extend([node, *after])
    del graph.node[:]
    graph.node.extend(nodes)


class _Outputs(nn.Module):
    """What the graph computes of rows.

    Parameters
    ----------
    module : Autoencoder
    methods : sequence of str
        Names of the outputs.
    offset : float
        The threshold of the scores.
    dtype : torch.dtype
        Of codes and reconstructions.
    """

    offset: Tensor

    def __init__(
        self,
        module: Autoencoder,
        methods: Sequence[str],
        offset: float,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.module = module
        self.methods = methods
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.float64))
        self.dtype = dtype

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        X = X.double()
        made = {}
        if "transform" in self.methods:
            made["transform"] = self.module.encode(X).to(self.dtype)
        if "reconstruct" in self.methods:
            made["reconstruct"] = self.module(X).to(self.dtype)
        if not set(self.methods).isdisjoint(OUTPUTS["scores"]):
            error = self.module.row_error(X)
            scores = -torch.where(error.isnan(), torch.inf, error)
            made["score_samples"] = scores
            made["decision_function"] = scores - self.offset
            made["predict"] = torch.where(made["decision_function"] < 0, -1, 1)
        return tuple(made[name] for name in self.methods)


class _TracedScaler(Scaler):
    """A scaler that does not look whether an entry is missing."""

    def forward(self, X: Tensor, *, overwrite: bool = False) -> tuple[Tensor, Tensor]:
        scaled = self._scale(X, out=None)
        observed = ~scaled.isnan()
        return torch.where(observed, scaled, self.scaled_mean), observed


class _Traced(Autoencoder):
    """An autoencoder whose refinement is traced as one operator, to be filled in."""

    @classmethod
    def of(cls, estimator: BaseAutoencoder) -> _Traced:
        """What an estimator predicts with in float64, as a copy, on the CPU."""
        module: Any = copy.deepcopy(estimator.net_.module_in(np.dtype(np.float64)))
        module.__class__, module.scaler.__class__ = cls, _TracedScaler
        return module.cpu().eval()

    def _refined(
        self, Z: Tensor, target: Tensor, observed: Any, max_iter: int
    ) -> Tensor:
        if not max_iter:
            return Z
        return torch.onnx.ops.symbolic(
            "skae::Descent",
            (*self.begin(Z, target, observed), target, observed),
            dtype=Z.dtype,
            shape=Z.shape,
            version=1,
        )

    def begin(self, Z: Tensor, target: Tensor, observed: Tensor) -> Descent:
        """Before the first step, with all moved codes in one batch.

        One pass after another would make the graph as many times as large.
        """

        def differences(residuals: Any, Z: Tensor, R: Tensor) -> Tensor:
            k = Z.shape[1]
            width = narrowest(Z.dtype) * Z.abs().clamp(min=1)
            moved = Z[:, None] + torch.diag_embed(width)  # (n_samples, k, k)
            residuals = self.residuals_to(_repeated(target, k), _repeated(observed, k))
            R_moved = residuals(moved.flatten(0, 1)).unflatten(0, (-1, k))
            width = (moved - Z[:, None]).diagonal(dim1=1, dim2=2)
            return ((R_moved - R[:, None]) / width[:, :, None]).mT

        return begin_descent(self.residuals_to(target, observed), Z, differences)

    def example(self, X: Tensor) -> tuple[Tensor, ...]:
        """What a step of the refinement may be given."""
        target, observed = self.scaler(X)
        Z = target.new_zeros(len(target), self.n_components)
        return (*self.begin(Z, target, observed), target, observed)

    def residuals_to(
        self, target: Tensor, observed: Tensor
    ) -> Callable[[Tensor], Tensor]:
        def residuals(Z: Tensor) -> Tensor:
            return (self.output(self.decoder(Z)) - target).where(observed, 0)

        return residuals


def _repeated(values: Tensor, k: int) -> Tensor:
    """Each row k times."""
    return values[:, None].expand(-1, k, -1).flatten(0, 1)


class _Step(nn.Module):
    """One step of the refinement, with all that the next one needs.

    Parameters
    ----------
    module : _Traced
    """

    def __init__(self, module: _Traced):
        super().__init__()
        self.module = module

    def forward(
        self,
        Z: Tensor,
        R: Tensor,
        error: Tensor,
        J: Tensor,
        damping: Tensor,
        target: Tensor,
        observed: Tensor,
    ) -> tuple[Tensor, ...]:
        descent = Descent(Z, R, error, J, damping)
        after = descend(self.module.residuals_to(target, observed), descent)
        return (*after, target, observed)


def _traced(
    module: nn.Module,
    args: tuple[Tensor, ...],
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """The ONNX model of a module whose inputs have any number of rows."""
    from onnx import inliner

    from skae._operators import translations

    n_samples = torch.export.Dim("n_samples")
    try:
        with _quiet():
            program = torch.export.export(
                module,
                args,
                dynamic_shapes=tuple({0: n_samples} for _ in args),
                strict=False,
            )
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                custom_translation_table=translations(),
                optimize=False,  # runtimes do it themselves, in less time
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            "The network, or another part of the estimator, does what PyTorch cannot "
            f"write in ONNX for any number of rows: {_cause(error)}"
        ) from error
    return inliner.inline_local_functions(written.model_proto)


def _cause(error: BaseException) -> str:
    """The first line of the error behind all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from telling what it traces, lacks, and will change one day."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            with redirect_stderr(nowhere):
                yield
    finally:
        logger.setLevel(level)


def _repeat(graph: Any, place: Any, step: Any, n_steps: int) -> None:
    """Put a loop over the graph of a step in the place of a node of `graph`."""
    from onnx import TensorProto, compose, helper, numpy_helper

    (result,) = place.output
    prefix = f"{result}_"
    step = compose.add_prefix_graph(step, prefix)
    number = helper.make_tensor_value_info(f"{prefix}number", TensorProto.INT64, [])
    go_on = helper.make_tensor_value_info(f"{prefix}go_on", TensorProto.BOOL, [])
    still = helper.make_tensor_value_info(f"{prefix}still", TensorProto.BOOL, [])
    # All that a step needs is in its graph, since skl2onnx does not look outside.
    body = helper.make_graph(
        [*step.node, helper.make_node("Identity", [go_on.name], [still.name])],
        f"{prefix}step",
        [number, go_on, *step.input],
        [still, *step.output],
        step.initializer,
    )
    count = numpy_helper.from_array(np.array(n_steps), f"{prefix}count")
    start = numpy_helper.from_array(np.array(True), f"{prefix}start")
    graph.initializer.extend([count, start])
    loop = helper.make_node(
        "Loop",
        [count.name, start.name, *place.input],
        [result, *(f"{prefix}last_{i}" for i in range(1, len(place.input)))],
        body=body,
    )
    at = list(graph.node).index(place)
    graph.node.remove(place)
    graph.node.insert(at, loop)
