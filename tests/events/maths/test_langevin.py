import torch

from burnish.events.maths.langevin import langevin, reverse_diffusion

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.8, 0.3], [0.3, 0.4]], dtype=torch.float64)


def test_langevin_recovers_a_gaussian() -> None:
    precision = torch.linalg.inv(COVARIANCE)
    start = torch.zeros(6000, 2, dtype=torch.float64)
    drawn = langevin(
        lambda x: -(x - MEAN) @ precision, start, step=0.02, num_steps=500, generator=torch.Generator().manual_seed(0)
    )
    # 6,000 independent chains: standard error 0.012; the step adds a bias of about step/8 of the precision.
    assert torch.allclose(drawn.mean(0), MEAN, atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), COVARIANCE, atol=0.06)


def test_reverse_diffusion_recovers_a_gaussian() -> None:
    def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        smoothed = COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        return -(x - MEAN) @ torch.linalg.inv(smoothed)

    sigmas = torch.logspace(1, -2, 80, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = 10 * torch.randn(6000, 2, generator=generator, dtype=torch.float64)
    drawn = reverse_diffusion(score, start, sigmas, generator=generator)
    assert torch.allclose(drawn.mean(0), MEAN, atol=0.06)
    assert torch.allclose(torch.cov(drawn.T), COVARIANCE, atol=0.08)


def test_refused_proposals_keep_the_chain_inside() -> None:
    start = torch.full((200,), 0.1, dtype=torch.float64)
    drawn = langevin(
        lambda x: -torch.ones_like(x),
        start,
        step=0.1,
        num_steps=50,
        generator=torch.Generator().manual_seed(0),
        refuse_below=0.0,
    )
    assert (drawn >= 0).all()
