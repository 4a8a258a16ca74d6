"""What Graftwork is compared with: the same training as a PyTorch user and a Flower user would write it.

What trains there, flower_app, imports nothing of Graftwork's; flower_run.py only starts and measures it.
"""
