"""Stateless functions on tensors and arrays."""
