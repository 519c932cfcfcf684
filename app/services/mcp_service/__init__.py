"""MCP by the official SDK, in a worker process.

`client.py` is the server's side and imports no SDK; `worker.py` is the process. The SDK bounds no
sizes, and what servers send is foreign: the process has no environment, little memory, and is
killed when it hangs.
"""
