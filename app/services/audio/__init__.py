"""Reads what people record: its format, its length, its samples, and whether somebody speaks.

`job.py` is the only part that decodes with FFmpeg, and it runs in the worker process of
`services.sandbox`, never in the server. The rest is Python and NumPy.
"""

import os

# Read once, by NumPy's first import. Products this small lose by threads: measured on two busy
# cores, they spin for each other and cost up to eight times the CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
