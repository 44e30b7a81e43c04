"""Public text-to-image networks as Linen modules: diffusers' folders read, written, and told a time field."""
