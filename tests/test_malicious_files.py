"""Tests of skae.load with damaged and forged files: an error, and nothing else."""

import subprocess
import sys
import textwrap
import warnings
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import corrupted
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import load as read_tensors

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._files import crc32, tensor_file
from skae.engine import checkpoint
from skae.engine.checkpoint import Checkpoint
from skae.persistence import METADATA_KEY

N_CASES, N_SLOW_CASES = 60, 2000

# Bytes that loading a small file may take at most.
MAX_MEMORY = 100 * 10**6

ESTIMATORS = {
    "transformer": AutoencoderTransformer(2),
    "ordered": AutoencoderTransformer(2, ordered=True),
    "variational": AutoencoderTransformer(2, bottleneck="gaussian"),
    "quantized": AutoencoderTransformer(2, bottleneck="quantized"),
    "conv": AutoencoderTransformer(2, network="conv"),
    "detector": AutoencoderOutlierDetector(n_estimators=2),
}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(size=(30, 6))


@pytest.fixture(scope="module")
def contents(X, tmp_path_factory):
    """Content of a file of each estimator."""
    folder = tmp_path_factory.mktemp("good")
    for name, estimator in ESTIMATORS.items():
        estimator.set_params(max_epochs=1, random_state=0).fit(X)
        skae.save(estimator, folder / name)
    return {name: (folder / name).read_bytes() for name in ESTIMATORS}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def cases(contents, of_estimator, n_cases):
    """Yield the name of an estimator, what was done to its file, and the content."""
    generators = {
        name: of_estimator(content, seed)
        for seed, (name, content) in enumerate(contents.items())
    }
    for name in islice(cycle(generators), n_cases):
        yield name, *next(generators[name])


def forged(content, seed):
    write = partial(tensor_file, METADATA_KEY)
    return corrupted.forged(content, seed, METADATA_KEY, write)


def load_or_error(path):
    """Return the estimator, or None after an error that names the file."""
    try:
        with warnings.catch_warnings():
            # The recorded version may be another one.
            warnings.simplefilter("ignore", UserWarning)
            return skae.load(path)
    except Exception as raised:
        error = raised
    assert type(error) in (ValueError, TypeError)  # not a class derived from these
    assert repr(str(path)) in str(error)
    return None


n_cases = pytest.mark.parametrize(
    "n_cases", [N_CASES // 2, pytest.param(N_SLOW_CASES // 2, marks=pytest.mark.slow)]
)


@n_cases
def test_damaged_files_are_refused_or_predict_the_same(n_cases, contents, X, path):
    for name, _, content in cases(contents, corrupted.damaged, n_cases):
        path.write_bytes(content)
        loaded = load_or_error(path)
        if loaded is not None:  # the header has changed, not what it says
            expected = ESTIMATORS[name].score_samples(X)
            assert_array_equal(loaded.score_samples(X), expected)


@n_cases
def test_forged_files_run_no_code(n_cases, contents, path):
    for name, how, content in cases(contents, forged, n_cases):
        path.write_bytes(content)
        n_modules = len(sys.modules)
        loaded = load_or_error(path)
        assert loaded is None or isinstance(loaded, type(ESTIMATORS[name])), how
        assert not corrupted.CALLS, how
        assert len(sys.modules) == n_modules, how


@n_cases
@pytest.mark.parametrize("is_forged", [False, True])
def test_corrupted_checkpoints_are_refused(is_forged, n_cases, tmp_path):
    stored = Checkpoint(str(tmp_path), "abc")
    layers = [{"weight": torch.rand(3, 4), "order": np.arange(5)}, torch.rand(7)]
    stored.write({"layers": layers, "epoch": 3, "losses": [1.5, None]})
    content = stored.path.read_bytes()
    key = checkpoint.METADATA_KEY
    write = partial(tensor_file, key, checksum=crc32)
    generator = (
        corrupted.forged(content, 0, key, write)
        if is_forged
        else corrupted.damaged(content, 0)
    )
    for how, other in islice(generator, n_cases):
        stored.path.write_bytes(other)
        try:
            stored.read()
        except Exception as raised:
            error = raised
            assert type(error) is ValueError, how
            assert str(tmp_path) in str(error), how
        assert not corrupted.CALLS, how


def test_canary_is_called_if_it_is_trusted(contents, path):
    # Otherwise the test above would not notice it.
    described = '{"object": ["corrupted:Canary", {}]}'
    content = replaced(contents["transformer"], '"network": "mlp"', described)
    path.write_bytes(content)
    try:
        skae.load(path, trusted=[corrupted.Canary])
        assert corrupted.CALLS
    finally:
        corrupted.CALLS.clear()


# Memory

# A class of PyTorch whose constructor would allocate 40 GB.
LARGE_LAYER = '"torch.nn.modules.linear:Linear", [100000, 100000]'


def replaced(content, old, new):
    """Return a file with a valid checksum in whose description a value is replaced."""
    description = corrupted.description_of(content, METADATA_KEY)
    name, _, _ = old.partition(": ")
    assert old in description
    text = description.replace(old, f"{name}: {new}", 1)
    return tensor_file(METADATA_KEY, text, read_tensors(content))


def foreign(n_bytes):
    """Return the header of a file of another library, with a large tensor."""
    tensor = {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}
    return corrupted.with_header({"weight": tensor})


def peak_memory(folder):
    """Return the bytes that a process needs, after the first file, to load a folder."""
    code = """
        import re, resource, sys, warnings
        from pathlib import Path
        import skae

        def peak():
            # On Linux, ru_maxrss includes the peak of the parent process.
            status = Path("/proc/self/status")
            if status.exists():
                found = re.search("VmHWM:[^0-9]*([0-9]+)", status.read_text())
                return 1024 * int(found[1])
            # in KiB, except on macOS
            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        warnings.simplefilter("ignore")
        paths = sorted(Path(sys.argv[1]).iterdir())
        skae.load(paths[0])
        before = peak()
        for path in paths[1:]:
            try:
                skae.load(path)
            except (ValueError, TypeError):
                pass
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_small_files_need_little_memory(contents, tmp_path):
    content = contents["transformer"]
    (tmp_path / "0").write_bytes(content)
    huge = {
        "features": ('"n_features_in_": 6', "10000000000"),
        "components": ('"n_components": 2', "10000000000"),
        "layer": ('"network": "mlp"', f'{{"named_tuple": [{LARGE_LAYER}]}}'),
        "width": ('"widest_layer": 64', "10000000000"),
    }
    for name, (old, new) in huge.items():
        (tmp_path / name).write_bytes(replaced(content, old, new))
    padded = replaced(contents["conv"], '"padding": {"tuple": [1]}', "[1000000000]")
    (tmp_path / "padding").write_bytes(padded)
    with (tmp_path / "foreign").open("wb") as file:
        header = foreign(10**9)
        file.write(header)
        file.truncate(len(header) + 10**9)  # without blocks on the disk
    assert peak_memory(tmp_path) < MAX_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("of_estimator", [corrupted.damaged, forged])
def test_corrupted_files_need_little_memory(of_estimator, contents, tmp_path):
    (tmp_path / "0").write_bytes(contents["transformer"])
    for i, (_, _, content) in enumerate(cases(contents, of_estimator, 1000), 1):
        (tmp_path / str(i)).write_bytes(content)
    assert peak_memory(tmp_path) < MAX_MEMORY


def test_other_files_of_the_format_are_refused_before_their_tensors_are_read(path):
    path.write_bytes(foreign(10) + bytes(10))
    with pytest.raises(ValueError, match=r"was not written by skae\.save"):
        skae.load(path)


# Single cases


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64 - 1])
def test_empty_tensors_of_any_shape_are_refused(size, contents, path):
    # safetensors accepts shapes that PyTorch does not.
    empty = {"dtype": "F32", "shape": [0, size], "data_offsets": [0, 0]}
    metadata = {METADATA_KEY: "0\n{}"}
    path.write_bytes(corrupted.with_header({"__metadata__": metadata, "x": empty}))
    assert load_or_error(path) is None


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.linear:Linear", "skae.networks:MLP"]
)
def test_only_named_tuples_are_constructed(name, contents, path):
    described = f'{{"named_tuple": ["{name}", [3, 3]]}}'
    path.write_bytes(replaced(contents["transformer"], '"network": "mlp"', described))
    with pytest.raises(ValueError, match="is not a named tuple"):
        skae.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"n_features_in_": 6', "7", "does not fit n_features_in_"),
        ('"n_features_in_": 6', "6.5", "does not fit n_features_in_"),
        ('"n_components": 2, "draws', '1, "draws', "does not fit n_components"),
        ('"encoder": {"object"', 'null, "e": {"object"', "encoder is no module"),
        ('"encoder": {"object"', '"x", "e": {"object"', "does not describe"),
        ('"net": {"net"', '{"dict": {}}, "e": {"net"', "does not describe"),
    ],
)
def test_inconsistent_parts_are_refused(old, new, message, contents, path):
    path.write_bytes(replaced(contents["transformer"], old, new))
    with pytest.raises(ValueError, match=message):
        skae.load(path)


def test_untrusted_names_are_refused_with_the_name_of_the_file(contents, path):
    described = '{"named": "os:system"}'
    path.write_bytes(replaced(contents["detector"], '"network": "mlp"', described))
    with pytest.raises(TypeError, match=r"model\.safetensors' contains 'os:system'"):
        skae.load(path)


@pytest.mark.parametrize("kind", ["folder", "empty", "device"])
def test_paths_that_are_no_files_are_refused(kind, tmp_path):
    paths = {"folder": tmp_path, "empty": tmp_path / "x", "device": Path("/dev/null")}
    (tmp_path / "x").touch()
    with pytest.raises((OSError, ValueError), match=str(paths[kind])):
        skae.load(paths[kind])
