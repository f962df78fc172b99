"""The physics: one module per simulator, importing sbiflow's contracts, checks and priors only."""
