"""How a copy gets from its source to its destination: one module for each way."""
