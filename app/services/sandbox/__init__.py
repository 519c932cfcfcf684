"""Worker processes for everything that parses foreign bytes: sound and documents.

`sandbox.py` is the server's side: a fair queue, and a process that is kept alive. `worker.py` is
that process: it runs jobs in children of its own, without secrets, files, network or much memory.
The package knows nothing of what jobs read: a job names a function, which the worker imports.

Import the modules themselves: the worker must not pay for the server's libraries.
"""
