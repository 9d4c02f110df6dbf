"""Model descriptions (one YAML per checkpoint) and the recipe of the shipped default model."""
