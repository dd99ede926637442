"""A Gaussian process, for which information and the perfect denoiser are known exactly.

Conditional mutual information from determinants, the perfect denoiser and its errors: what tests of
`worldmodel.analysis.bottleneck` compare with.

What is predicted, seen and remembered are linear maps (rows, T) of the process x: rows of the identity pick times,
other rows are compressions such as means over slots.
"""

import torch


def _condition(covariance: torch.Tensor, output: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the covariance of `output @ x` when `given @ x` is known."""
    own, cross, known = output @ covariance @ output.mT, output @ covariance @ given.mT, given @ covariance @ given.mT
    return own - cross @ torch.linalg.solve(known, cross.mT) if len(given) else own


def gaussian_process_information(
    covariance: torch.Tensor, output: torch.Tensor, past: torch.Tensor, given: torch.Tensor
) -> float:
    """Return I(output @ x; past @ x | given @ x) of a Gaussian process x, exactly, in nats.

    Args:
        covariance: float64 (T, T) of x.
        output: float64 (W, T), what is predicted; rows of the identity pick times.
        past: float64 (P, T), what the memory holds; any linear map, such as means over slots. P may be 0.
        given: float64 (G, T), the input; independent of `past`'s rows. G may be 0.
    """
    ahead = torch.logdet(_condition(covariance, output, given))
    behind = torch.logdet(_condition(covariance, output, torch.cat([given, past])))
    return float(ahead - behind) / 2


def gaussian_process_errors(
    covariance: torch.Tensor, output: torch.Tensor, given: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """Return the smallest expected squared errors of a Gaussian process: the errors of the perfect denoiser.

    Args:
        covariance, output, given: as `gaussian_process_information`; `given` is all that the denoiser sees.
        levels: float (S, W) above 0, one for each row of `output`.

    Returns:
        float64 (S, W), the error of each row of the clean output.
    """
    snr = ((1 - levels.double()) / levels.double()).square()
    precision = torch.linalg.inv(_condition(covariance, output, given))
    return torch.linalg.inv(precision + torch.diag_embed(snr)).diagonal(dim1=-2, dim2=-1)


def gaussian_process_denoise(
    covariance: torch.Tensor,
    output: torch.Tensor,
    given: torch.Tensor,
    seen: torch.Tensor,
    noisy: torch.Tensor,
    levels: torch.Tensor,
) -> torch.Tensor:
    """Return the perfect denoiser's clean prediction E[output @ x | given @ x = seen, noisy].

    Args:
        covariance, output, given: as `gaussian_process_errors`.
        seen: float64 (N, G).
        noisy: float64 (N, W), the output on the noise path x_l = (1 - l) x0 + l noise.
        levels: float (W,) above 0.
    """
    own = _condition(covariance, output, given)
    expected = torch.zeros_like(noisy)
    if len(given):
        gain = torch.linalg.solve(given @ covariance @ given.mT, given @ covariance @ output.mT)
        expected = seen @ gain
    scale = 1 - levels.double()
    heard = torch.diag(scale) @ own @ torch.diag(scale) + torch.diag(levels.double().square())
    return expected + (noisy - scale * expected) @ torch.linalg.solve(heard, torch.diag(scale) @ own)
