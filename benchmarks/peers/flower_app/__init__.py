"""A Flower app; vs_flower.py copies it into a run's folder and starts it in an environment of its own."""
