"""Special functions in log space that torch lacks: exact in both tails, batched, on the device of their input."""
