"""How accurate every family and special function is, measured on random parameters: `python -m tests.accuracy`."""
