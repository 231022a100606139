"""How one language model scores a batch. Knows torch and transformers (both imported late), nothing of Ray."""
