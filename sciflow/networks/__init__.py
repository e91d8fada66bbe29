"""Networks that hyper-parameterise flows."""
