"""What Graftwork is compared with: training as users of PyTorch and Flower would write it, and ByzFL.

What runs with a peer, flower_app and byzfl_oracle.py, imports nothing of Graftwork's; flower_run.py only
starts and measures it. environment.py makes the peers' environments.
"""
