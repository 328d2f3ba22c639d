"""Compare the predictions of a served model with those of its run's test.

The test images of the run's `data_path` (ImageFolderDataModule) are sent as files to a server that
`mlflow models serve` has started. The run is read from the store of MLFLOW_TRACKING_URI.
"""

import base64
import http.client
import json
import sys

import mlflow

from benchmarks.parts.command import BenchmarkParser
from benchmarks.serve import invoke
from pyclassify.datamodule import ImageFolderDataModule

IMAGES_PER_REQUEST = 50


def main():
    parser = BenchmarkParser("agree", __doc__, ("RUN_ID FOLDER", "RUN_ID FOLDER --port 5001"))
    parser.add_argument("run", metavar="RUN_ID", help="Compare with the test of this run.")
    parser.add_argument("folder", help="Read the test images of the run's data_path.")
    parser.add_argument("--port", type=int, default=5000, help="Send requests to this port.")
    parser.add_argument("--images", type=int, default=1000, help="Send this number of images.")
    args = parser.parse_args(sys.argv[1:])
    run = mlflow.get_run(args.run)
    table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions.json"))
    data = ImageFolderDataModule(data_path=args.folder)
    data.setup("test")
    step = max(1, len(table["data"]) // args.images)  # some of each class, as files are sorted
    tested = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    tested = tested[::step][: args.images]
    files = [data.test.files[row["index"]] for row in tested]
    pairs = list(zip(predict(files, args.port), tested, strict=True))
    same = sum(served["classes"][0] == row["predicted"] for served, row in pairs)
    correct = sum(served["classes"][0] == row["label"] for served, row in pairs)
    differences = (
        abs(served["probabilities"][0] - row["probability"])
        for served, row in pairs
        if served["classes"][0] == row["predicted"]
    )
    result = {
        "images": len(tested),
        "same_class": same,
        "served_accuracy": correct / len(tested),
        "run_accuracy": sum(row["label"] == row["predicted"] for row in tested) / len(tested),
        "max_probability_difference": max(differences),
        "test_accuracy": run.data.metrics["test_accuracy"],
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def predict(files, port):
    """Send image files to the server; yield its predictions."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for start in range(0, len(files), IMAGES_PER_REQUEST):
        images = []
        for path in files[start : start + IMAGES_PER_REQUEST]:
            with open(path, "rb") as file:
                images.append(base64.b64encode(file.read()).decode())
        content = invoke(connection, json.dumps({"inputs": images}).encode())
        yield from json.loads(content)["predictions"]


if __name__ == "__main__":
    main()
