"""A published model through the whole program, offline: SmolLM2-135M, fine-tuned, resumed, merged, and beside TRL."""
