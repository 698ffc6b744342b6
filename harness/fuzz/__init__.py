"""Random hosts against the policy, and against a running machine: what holds for any of them."""
