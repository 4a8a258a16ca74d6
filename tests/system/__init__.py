"""Tests with real processes and a real broker."""
