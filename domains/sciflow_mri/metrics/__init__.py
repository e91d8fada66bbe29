"""How good reconstructions and intervals are."""

from sciflow_mri.metrics.images import match_scale, psnr, ssim

__all__ = ["match_scale", "psnr", "ssim"]
