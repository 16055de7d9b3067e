"""
A web service that scores rows
==============================

A fitted detector answers requests over HTTP: rows in JSON go in, their scores come out.
The service needs the standard library only. It has two processes, each of which loads
the file of the detector and answers every connection in a thread of its own. Both
accept connections from the same socket, so that the operating system divides these
between them, and a process that is killed does not end the service.

A client then sends single rows and batches of 100 rows from four threads at once, and
draws how long it waits for the answers.
"""

# sphinx_gallery_parallel = False

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse

parser = argparse.ArgumentParser(description="Web service", allow_abbrev=False)
parser.add_argument("--out", default="figures", help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out
# sphinx_gallery_end_ignore

import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import skae

# %%
# The server. The estimator checks the rows: the message of its error, which says what
# is wrong with them, is the answer to a bad request. Predictions do not change the
# estimator, so the threads of a process share it.


class Handler(BaseHTTPRequestHandler):
    """Answers requests for scores; the class attribute `detector` computes them."""

    detector: skae.AutoencoderOutlierDetector
    protocol_version = "HTTP/1.1"  # a connection is kept for further requests
    disable_nagle_algorithm = True

    def do_POST(self):
        """Answer rows, a list of lists, by their scores, a list of numbers."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            scores = self.detector.score_samples(json.loads(body))
        except (ValueError, TypeError) as error:
            self.answer(400, {"error": str(error)})
        else:
            self.answer(200, {"scores": scores.tolist()})

    def answer(self, status, content):
        """Send the status of the request and a content in JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Print nothing."""


def serve(listener, path):
    """Answer requests until the process is terminated.

    Parameters
    ----------
    listener : socket.socket
        Shared by all processes of the service.
    path : path-like
        File of the detector.
    """
    Handler.detector = skae.load(path)
    with ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listener
        server.serve_forever()


@contextmanager
def running_service(path, n_processes=2) -> Iterator[tuple[int, list]]:
    """Context in which a service runs; yields its port and its processes."""
    context = multiprocessing.get_context("spawn")
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    # Another process may be faster to accept a connection that both have noticed.
    listener.settimeout(1)
    processes = [
        context.Process(target=serve, args=(listener, path), daemon=True)
        for _ in range(n_processes)
    ]
    try:
        for process in processes:
            process.start()
        port = listener.getsockname()[1]
        listener.close()  # clients of processes that have all ended get an error
        yield port, processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


# %%
# The client. Connections made before the processes are ready wait for them.


def ask(connection, rows):
    """Return the status and the content of the answer to a request for scores."""
    connection.request("POST", "/", json.dumps(rows))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def measure(port, tables):
    """Return the milliseconds until the answer for each of some tables."""
    waited = []
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        ask(connection, tables[0])  # the process may still be starting
        for rows in tables:
            start = time.perf_counter()
            status, content = ask(connection, rows)
            waited.append(1000 * (time.perf_counter() - start))
            assert status == 200, content
            assert len(content["scores"]) == len(rows)
    return waited


# %%
# The measurement. The processes of the service import this file. Therefore `main` runs
# in the first process only, and starts the service from the imported file too.


def main():
    import plot_service

    X = load_breast_cancer().data
    detector = skae.AutoencoderOutlierDetector(random_state=0).fit(X)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        skae.save(detector, path)
        with plot_service.running_service(path) as (port, _):
            with closing(HTTPConnection("127.0.0.1", port)) as connection:
                _, content = ask(connection, X[:3].tolist())
                print("scores:", np.round(content["scores"], 3))
                assert np.allclose(content["scores"], detector.score_samples(X[:3]))
                print("bad rows:", *ask(connection, X[:3, :2].tolist()))
            tables = {
                "one row": [X[i : i + 1].tolist() for i in range(300)],
                "100 rows": [X[i : i + 100].tolist() for i in range(50)],
            }
            with ThreadPoolExecutor(4) as threads:
                waited = {
                    name: np.concatenate(
                        list(threads.map(measure, [port] * 4, [t] * 4))
                    )
                    for name, t in tables.items()
                }

    figure, axes = plt.subplots(layout="constrained")
    for name, values in waited.items():
        median, late = np.percentile(values, [50, 99])
        label = f"{name}: median {median:.1f} ms, 99th percentile {late:.1f} ms"
        print(label)
        axes.ecdf(values, label=label)
    axes.set(xscale="log", xlabel="milliseconds until the answer")
    axes.set(ylabel="share of the requests", title="Four clients at once")
    axes.legend(loc="upper left")
    # sphinx_gallery_start_ignore
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "service.png", dpi=100)
    # sphinx_gallery_end_ignore


if __name__ == "__main__":
    main()
