"""Training an autoencoder and measuring any: its parts from a configuration, its program, its pages."""
