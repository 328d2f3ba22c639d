"""What tests share: networks, images, runs, processes, and the real parts they are run with."""
