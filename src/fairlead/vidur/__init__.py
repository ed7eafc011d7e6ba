"""The simulator Vidur (PyPI, version 0.0.26), run offline on Fairlead's requests, hardware and routers."""
