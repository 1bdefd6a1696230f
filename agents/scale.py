"""Scale: what a rollout and an update cost at the sizes of real models, on a GPU."""
