"""Metrics of tasks, as pure functions of what is true and what is predicted."""
