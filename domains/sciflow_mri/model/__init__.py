"""Priors and posteriors: flows over complex images."""
