"""How alike devices learn: cosines of their updates, the tree of them, and the groups of the fleet.

The server sees no data; what it has are the updates in its journal. Two devices whose updates point the same
way, beyond what all have in common, want the same of the adapter. Estimators that need a device's windows run
on the device (agent/transferability.py).
"""
