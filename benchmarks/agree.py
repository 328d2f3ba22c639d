"""Ask a served model for the images that its run was tested on: the same answer to each?

    python -m benchmarks.agree RUN_ID FOLDER [--port 5000] [--images 1000]

FOLDER is the run's `data_path` (ImageFolderDataModule), whose test images are sent as the files
that they are. MLFLOW_TRACKING_URI names the run's store.
"""

import argparse
import base64
import http.client
import json
import sys

import mlflow

from benchmarks.serve import invoke
from pyclassify.datamodule import ImageFolderDataModule

REQUEST = 50  # images in each


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    run = mlflow.get_run(given.run)
    table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions.json"))
    data = ImageFolderDataModule(data_path=given.folder)
    data.setup("test")
    step = max(1, len(table["data"]) // given.images)  # some of each class, as files are sorted
    tested = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    tested = tested[::step][: given.images]
    answers = list(ask([data.test.files[each["index"]] for each in tested], given.port))
    same = sum(a["classes"][0] == t["predicted"] for a, t in zip(answers, tested, strict=True))
    right = sum(a["classes"][0] == t["label"] for a, t in zip(answers, tested, strict=True))
    apart = (
        abs(a["probabilities"][0] - t["probability"])
        for a, t in zip(answers, tested, strict=True)
        if a["classes"][0] == t["predicted"]
    )
    result = {
        "images": len(tested),
        "the_same_class": same,
        "accuracy_served": right / len(tested),
        "accuracy_in_the_run": sum(t["label"] == t["predicted"] for t in tested) / len(tested),
        "largest_difference_of_probabilities": max(apart),
        "test_accuracy": run.data.metrics["test_accuracy"],
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def ask(files, port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for start in range(0, len(files), REQUEST):
        texts = []
        for path in files[start : start + REQUEST]:
            with open(path, "rb") as file:
                texts.append(base64.b64encode(file.read()).decode())
        answer = invoke(connection, json.dumps({"inputs": texts}).encode())
        yield from json.loads(answer)["predictions"]


if __name__ == "__main__":
    main()
