"""Settings that every test shares: one thread, no display."""

import os

# Before NumPy or torch is imported; subprocesses inherit it. Two cores are shared by the whole suite.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "agg"
