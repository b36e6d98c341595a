"""What guidance does to a velocity, against numbers worked by hand."""

from __future__ import annotations

import torch

from musubi_core.sampling.guidance import guided, with_norm_of, with_spread_of


def test_each_token_gets_the_length_that_the_prompt_alone_gave_it():
    cond = torch.randn((2, 4, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    far = guided(cond, torch.randn(cond.shape, generator=torch.Generator().manual_seed(1)), 4.0)
    found = with_norm_of(far, cond)

    def tokens(x):
        """As the networks pack them: (B, tokens, 4 channels of 2 x 2 cells)."""
        return x.reshape(2, 4, 3, 2, 2, 3, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(2, 18, 16)

    torch.testing.assert_close(tokens(found).norm(dim=-1), tokens(cond).norm(dim=-1))
    direction = torch.nn.functional.cosine_similarity(tokens(found), tokens(far), dim=-1)
    torch.testing.assert_close(direction, torch.ones_like(direction))
    assert not torch.isnan(with_norm_of(torch.zeros_like(cond), cond)).any()


def test_the_spread_is_mixed_in_by_the_amount():
    cond = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    far = cond * 4
    assert torch.equal(with_spread_of(far, cond, amount=0.0), far)
    torch.testing.assert_close(with_spread_of(far, cond, amount=1.0), cond)
    torch.testing.assert_close(with_spread_of(far, cond, amount=0.5), cond * 2.5)
