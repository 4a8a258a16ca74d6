"""What every training engine must do, run once per engine in an environment of its own."""
