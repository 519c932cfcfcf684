"""Tools of agents: their definitions and versions, secrets, schemas, and the runner of HTTP calls.

It sends nothing itself: requests go through the port `Outbound`.
"""
