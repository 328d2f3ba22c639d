"""Have this process download small data sets: imported first by processes that tests fork.

The environment names a file with the attributes of torchvision's classes.
"""

import json
import os
from pathlib import Path

import torchvision.datasets

_FILE = Path(os.environ["PYCLASSIFY_TESTS_DOWNLOADS"])

for _name, _attributes in json.loads(_FILE.read_text()).items():
    for _attribute, _value in _attributes.items():
        setattr(getattr(torchvision.datasets, _name), _attribute, _value)
