"""Who locks, stops and starts the instance: one module for each."""
