"""The trainer of the small model: an autoencoder stage, then everything else in one stage."""
