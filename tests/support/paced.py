"""A network whose steps take a while, so that there is a time to kill them in."""

import os
import time

from tests.support.stopping import Net


class Paced(Net):
    """`stopping.Net`, and PACE seconds a step; the numbers are the same with any."""

    def forward(self, images):
        if self.training:
            time.sleep(float(os.environ.get("PACE", "0")))
        return super().forward(images)
