"""Clients write down what they were told while the server is broken; then it is compared.

`make faults` runs every row in full, `python -m tests.faults --short` as CI does. `--seed` and
`--row` replay one: the same faults at the same moments; what meets them depends on the machine.
"""
