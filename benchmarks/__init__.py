"""Benchmarks: `make bench`.

What is measured in turns shares two thread pools, torch's and XLA's: neither may spin while the
other works. OpenMP reads this when it is loaded, so before anything that could load it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
