"""Prompts as tokens, embeddings, and spans of words."""
