"""An MLflow Project of someone else, that knows neither pyclassify nor torch."""

MLPROJECT = """\
name: foreign
entry_points:
  main:
    command: "echo it is done"
  fail:
    command: "echo no such file >&2; exit 1"
  eat:
    command: "python -c 'bytearray(2_000_000_000)'"
  wait:
    parameters:
      file: string
      code: {type: int, default: 0}
    # it does not end by SIGTERM, which is not for the shell that it runs in
    command: "touch {file}.waits; until [ -e {file} ]; do sleep 0.1; done; exit {code}"
  obey:
    parameters:
      file: string
    command: "sh -c 'touch {file}.waits; until [ -e {file} ]; do sleep 0.1; done'"
"""


def write(folder):
    folder.mkdir()
    (folder / "MLproject").write_text(MLPROJECT)
    return folder
