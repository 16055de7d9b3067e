"""Types as mypy's strict mode sees them in a user's code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import skae

CHECKOUT = Path(skae.__file__).parents[1]

USES = {
    "ae.fit(X)": "skae.transformer.AutoencoderTransformer",
    "ae.fit(X, sample_weight=[1.0, 2.0])": "skae.transformer.AutoencoderTransformer",
    "ae.partial_fit(X)": "skae.transformer.AutoencoderTransformer",
    "ae.n_components_": "int",
    "ae.loss_curve_": "list[float]",
    "ae.score(X)": "float",
    "detector.fit(X)": "skae.outlier.AutoencoderOutlierDetector",
    "detector.recalibrate()": "skae.outlier.AutoencoderOutlierDetector",
    "detector.offset_": "float",
    "LossCurveDisplay.from_estimator(ae)": (
        "skae.inspection._loss_curve.LossCurveDisplay"
    ),
}
# Methods that return an array unless another output is set.
USES |= dict.fromkeys(
    (
        "ae.transform(X)",
        "ae.fit_transform(X)",
        "ae.inverse_transform(X)",
        "detector.predict(X)",
        "detector.decision_function(X)",
        "detector.score_samples(X)",
        "sliding_windows(X, 3)",
    ),
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]",
)
MISTAKES = {
    "AutoencoderTransformer(n_component=2)": 'did you mean "n_components"?',
    "AutoencoderTransformer(2, 'conv')": "Too many positional arguments",
    "ae.transform()": 'Missing positional argument "X"',
    "skae.save('model', ae)": "has incompatible type",
}
HEAD = """
import numpy as np
import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.inspection import LossCurveDisplay
from skae.windows import sliding_windows

X = np.zeros((20, 3))
ae = AutoencoderTransformer(2, random_state=0, hidden_layer_sizes=(8,))
detector = AutoencoderOutlierDetector(random_state=0)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What mypy says about each line, by its number."""
    folder = tmp_path_factory.mktemp("user")
    lines = [*HEAD.splitlines(), *(f"reveal_type({use})" for use in USES), *MISTAKES]
    (folder / "script.py").write_text("\n".join(lines) + "\n")
    options = ["--strict", "--follow-imports=silent", "--cache-dir", "cache"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "script.py"],
        cwd=folder,
        env={"MYPYPATH": str(CHECKOUT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "script.py:" in run.stdout, run.stdout + run.stderr
    said = {}
    for number, text in re.findall(r"(?m)^script\.py:(\d+): (.*)$", run.stdout):
        said.setdefault(lines[int(number) - 1], []).append(text)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_strict_mypy_infers_the_type(output, use):
    (text,) = output[f"reveal_type({use})"]
    assert text == f'note: Revealed type is "{USES[use]}"'


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_strict_mypy_finds_the_mistake(output, mistake):
    assert MISTAKES[mistake] in " ".join(output[mistake])


@pytest.mark.slow
def test_strict_mypy_accepts_the_rest(output):
    assert {line for line in output if not line.startswith("reveal_type")} == set(
        MISTAKES
    )
